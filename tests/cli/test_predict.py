"""``predict``: an option that would do nothing is refused, before anything is loaded."""

import pytest

LIVE = {
    "--device-format": ("--device-format", "lavfi"),
    "--queue": ("--queue", "4"),
    "--drop": ("--drop",),
    "--frames": ("--frames", "0"),
    "--idle": ("--idle", "2"),
}
WHOLE = {"--overlap": ("--overlap", "2"), "--no-video": ("--no-video",), "--prompts": ("--prompts", "p.json")}


@pytest.mark.parametrize("option", LIVE)
def test_options_of_streaming_without_it(refused, option):
    text = refused("predict", "model", "video.mp4", *LIVE[option])
    assert text == f"Without --stream, {option} would do nothing. Add --stream to predict frame by frame."


@pytest.mark.parametrize("option", WHOLE)
def test_options_of_whole_clips_with_streaming(refused, option):
    assert refused("predict", "model", "video.mp4", "--stream", *WHOLE[option]) == (
        f"With --stream, which predicts frame by frame and writes a table, {option} would do nothing. Leave out one or "
        "the other."
    )


def test_several_are_named_at_once(refused):
    text = refused("predict", "model", "video.mp4", *LIVE["--queue"], *LIVE["--idle"])
    assert text.startswith("Without --stream, --queue and --idle would do nothing.")
