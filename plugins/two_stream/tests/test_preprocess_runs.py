"""Prepared videos in the commands: once computed, then from the cache; the trained model prepares in the same way."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from medvid_core import load_model
from medvid_core.cli.main import main
from medvid_core.data.cache import Cache
from medvid_core.engine.stream import predict_stream
from medvid_core.errors import ConfigError

_SPEC = importlib.util.spec_from_file_location("two_stream_walkers", Path(__file__).with_name("walkers.py"))
assert _SPEC is not None
assert _SPEC.loader is not None
walkers = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(walkers)
scene, write = walkers.scene, walkers.write

GAIT = ("preprocess=gait", "preprocess.person=background", "preprocess.mask=background", "preprocess.flow=dis",
        "preprocess.size=48")  # fmt: skip
DATA = ("dataset.patients=4", "dataset.assistants=0", "dataset.frames=36", "dataset.size=[80,120]",
        "dataset.videos_per_patient=[1,1]")  # fmt: skip
TRAIN = ("preset=tiny", "split.val=0.25", "split.test=0.25", "train.max_steps=1", "evaluate.overlays=0")


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def run(tmp_path_factory, cache) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    main(["--model", "two-stream", "--data", "gait-phantom", *GAIT, *DATA, *TRAIN, f"cache={cache}", "--out", str(out)])
    return out


def record(folder: Path, name="run.json") -> dict:
    return json.loads((folder / name).read_text())["preprocess"]


def test_training_computes_once(run, cache, tmp_path):
    first = record(run)
    assert (first["cases"], first["from_cache"], first["computed"]) == (4, 0, 4)
    assert first["name"] == "medvid-two-stream/gait"
    out = tmp_path / "again"
    main(["--model", "two-stream", "--data", "gait-phantom", *GAIT, *DATA, *TRAIN, f"cache={cache}", "--out", str(out)])
    again = record(out)
    assert (again["from_cache"], again["computed"], again["seconds"]) == (4, 0, 0)
    assert (run / "cases.csv").read_text() == (out / "cases.csv").read_text(), "the same from the cache"


def test_the_trained_model_prepares_in_the_same_way(run, cache, tmp_path):
    info = load_model(run).medvid
    assert info.preprocess["name"] == "medvid-two-stream/gait"
    assert (info.preprocess["flow"], info.preprocess["size"], info.preprocess["stride"]) == ("dis", 48, 2)
    main(["evaluate", str(run), f"cache={cache}", "--out", str(tmp_path / "evaluated")])
    found = record(tmp_path / "evaluated", "summary.json")
    assert (found["from_cache"], found["computed"]) == (1, 0)


def test_prediction_prepares_and_leaves_out_what_it_cannot(run, tmp_path, capsys):
    videos = tmp_path / "videos"
    videos.mkdir()
    write(videos / "walk.mp4", scene())
    write(videos / "empty.mp4", scene(start=1000))
    with pytest.raises(SystemExit):
        main(["predict", str(run), str(videos), "--out", str(tmp_path / "out"), "--cache", str(tmp_path / "mine")])
    text = capsys.readouterr().err
    assert "1 case(s) could not be read and are left out:\n  empty: No walking person is found" in text
    assert (tmp_path / "out" / "walk" / "prediction.csv").is_file()
    assert not (tmp_path / "out" / "empty").exists()
    assert (tmp_path / "mine" / "entries").is_dir()


def test_a_stream_is_refused(run, tmp_path):
    with pytest.raises(ConfigError, match=r"prepared by medvid-two-stream/gait, which looks at whole videos"):
        predict_stream(run, str(write(tmp_path / "walk.mp4", scene(8))), tmp_path / "out")


def test_the_command_says_what_it_did(tmp_path, capsys):
    words = ["preprocess", "--model", "two-stream", "--data", "gait-phantom", *GAIT, *DATA, "--cache", str(tmp_path)]
    main(words)
    assert "4 case(s), 0 from the cache, 4 computed" in capsys.readouterr().err
    main(words)
    text = capsys.readouterr().err
    assert "4 case(s), 4 from the cache, 0 computed in 0.0 s" in text
    assert f"kept in  {tmp_path}" in text


def test_if_nothing_can_be_prepared_it_is_an_error(tmp_path, capsys):
    short = ["dataset.frames=6", "--cache", str(tmp_path)]
    with pytest.raises(SystemExit):
        main(["preprocess", "--model", "two-stream", "--data", "gait-phantom", *GAIT, *DATA, *short])
    text = capsys.readouterr().err
    assert "Not one of 4 case(s) could be prepared by medvid-two-stream/gait:" in text
    assert "walker-00000-1: It has 6 frame(s), of which preprocess.stride=2 leaves 3" in text


def test_nothing_to_prepare(capsys):
    with pytest.raises(SystemExit):
        main(["preprocess", "--model", "unet"])
    text = capsys.readouterr().err
    assert "takes videos as they are (preprocess=none): there is nothing to prepare" in text


def test_a_model_that_needs_flow_says_how_to_get_it(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["--model", "two-stream", "--data", "gait-phantom", "preprocess=none", *DATA, *TRAIN])
    assert "no chosen preprocessor makes. Set preprocess=gait." in capsys.readouterr().err


@pytest.mark.slow
def test_processes_share_the_work(tmp_path):
    """Two processes of torchrun compute every case once between them."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29641"]
    words = ["preprocess", "--model", "two-stream", "--data", "gait-phantom", *GAIT, *DATA]
    done = subprocess.run(
        [*torchrun, "-m", "medvid_core", *words, "--cache", str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "4 case(s), 0 from the cache, 4 computed" in done.stderr
    assert len(list(Cache(tmp_path).root.glob("entries/*/*"))) == 8, "person and flow of each"
