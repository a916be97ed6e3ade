"""Which clips an epoch sees and in what order: functions of (seed, epoch, position), for any number of processes."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medvid_core.config import ClipConfig
from medvid_core.data.clip import Case, Source
from medvid_core.data.sampling import (
    ClipItem,
    ClipKey,
    RankBatches,
    covering_starts,
    epoch_order,
    last_start,
    limited,
    random_start,
    sample_rng,
    steps_per_epoch,
    training_items,
    window,
)
from medvid_core.errors import DataError
from medvid_core.specs import OutputSpec

MASK = (OutputSpec(name="mask", task="segmentation", classes=("a",)),)
EF = (OutputSpec(name="ef", task="regression", classes=("ef",)),)


def case(frames=10, labelled=None, mask=True, name="a", **more) -> Case:
    streams = {"video": Source(reader="frames"), **({"mask": Source(reader="frames")} if mask else {})}
    return Case(case_id=name, group_id=name, frames=frames, streams=streams, labelled=labelled, **more)


CLIPS = st.builds(
    lambda frames, stride, overlap: ClipConfig(frames=frames, stride=stride, overlap=overlap % frames),
    st.integers(1, 8),
    st.integers(1, 5),
    st.integers(0, 7),
)


@given(st.integers(0, 2**40), st.integers(0, 1000), st.integers(1, 60), st.integers(1, 20))
def test_an_epoch_is_a_permutation_that_covers_every_item(seed, epoch, items, batch):
    order = epoch_order(seed, epoch, items, batch)
    assert order.shape == (steps_per_epoch(items, batch), batch)
    flat = order.ravel()
    assert sorted(flat[:items]) == list(range(items))
    assert (flat[items:] == np.resize(flat[:items], len(flat) - items if len(flat) > items else 0)).all()
    assert (order == epoch_order(seed, epoch, items, batch)).all()


def test_seed_and_epoch_change_the_order():
    orders = [epoch_order(seed, epoch, 50, 5).tobytes() for seed in (0, 1) for epoch in (0, 1)]
    assert len(set(orders)) == 4


def batches(processes=1, accumulate=1, rank=0, first=0, last=12, items=10, batch=8) -> list[list[ClipKey]]:
    return list(RankBatches(3, items, batch, accumulate, rank, processes, first, last))


@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_processes_and_micro_batches_share_out_the_same_batches(processes, accumulate):
    """The union over ranks and micro-batches of a step is the batch of one process, each clip once."""
    whole = batches()
    shares = [batches(processes, accumulate, rank) for rank in range(processes)]
    for step, keys in enumerate(whole):
        cut = slice(step * accumulate, (step + 1) * accumulate)
        assert [key for share in shares for micro in share[cut] for key in micro] == keys
    assert {len(micro) for share in shares for micro in share} == {8 // processes // accumulate}
    assert {len(share) for share in shares} == {12 * accumulate}


@given(st.integers(0, 12), st.sampled_from([1, 2, 4]), st.sampled_from([1, 2]), st.integers(1, 40))
def test_a_resumed_run_sees_the_tail_of_the_whole_sequence(first, processes, accumulate, items):
    for rank in range(processes):
        whole = batches(processes, accumulate, rank, items=items)
        rest = batches(processes, accumulate, rank, first=first, items=items)
        assert rest == whole[first * accumulate :]
        assert len(RankBatches(3, items, 8, accumulate, rank, processes, first, 12)) == len(rest)


def test_a_position_within_an_epoch_is_drawn_once():
    """No two samples of an epoch share their random numbers, even where the last batch repeats an item."""
    keys = [key for keys in batches(items=10, batch=8, last=2) for key in keys]
    assert len({(key.epoch, key.position) for key in keys}) == 16
    draws = {sample_rng(0, key).integers(2**62) for key in keys}
    assert len(draws) == 16


def test_a_batch_that_cannot_be_divided_is_refused():
    with pytest.raises(DataError) as info:
        batches(processes=3, accumulate=2)
    assert str(info.value) == (
        "train.batch_size=8 cannot be divided among 3 processes with train.accumulate=2: it must be a multiple of 6."
    )


def test_windows_repeat_the_nearest_frame_outside_the_video():
    clip = ClipConfig(frames=4, stride=2)
    indices, real = window(-2, 5, clip)
    assert indices.tolist() == [0, 0, 2, 4]
    assert real.tolist() == [False, True, True, True]
    indices, real = window(3, 5, clip)
    assert indices.tolist() == [3, 4, 4, 4]
    assert real.tolist() == [True, False, False, False]


@given(st.integers(1, 30), CLIPS, st.integers(0, 2**32), st.data())
def test_a_random_clip_lies_in_the_video_and_holds_a_labelled_frame(frames, clip, seed, data):
    labelled = data.draw(st.one_of(st.none(), st.sets(st.integers(0, frames - 1), min_size=1)))
    labelled = None if labelled is None else tuple(sorted(labelled))
    one = case(frames, labelled)
    start = random_start(one, clip, np.random.default_rng(seed))
    indices, real = window(start, frames, clip)
    assert 0 <= start < frames
    assert real[0]
    assert any(one.is_labelled(int(frame)) for frame in indices[real])
    assert real.all() or frames <= clip.stride * (clip.frames - 1) or start > last_start(frames, clip)


def test_random_clips_reach_every_frame():
    clip = ClipConfig(frames=3)
    rng = np.random.default_rng(0)
    assert {random_start(case(8), clip, rng) for _ in range(300)} == set(range(6))
    assert {random_start(case(8, labelled=(7,)), clip, rng) for _ in range(50)} == {5}
    assert {random_start(case(8, labelled=(0,)), clip, rng) for _ in range(50)} == {0}


def test_a_clip_with_targets_and_no_mask_frame_is_drawn_anywhere():
    """An echo with an ejection fraction and not one traced frame still trains the regression."""
    one = case(8, labelled=(), targets={"ef": 55.0})
    assert training_items([one], ClipConfig(frames=3), EF) == [ClipItem(0, None)]
    rng = np.random.default_rng(0)
    assert {random_start(one, ClipConfig(frames=3), rng) for _ in range(300)} == set(range(6))


@given(st.integers(1, 60), CLIPS)
def test_covering_windows_hold_every_frame(frames, clip):
    starts = covering_starts(frames, clip, clip.overlap)
    assert starts == sorted(set(starts))  # so that frames before the next window are finished
    seen = {start + clip.stride * t for start in starts for t in range(clip.frames)}
    assert seen >= set(range(frames))
    if clip.stride == 1:
        assert (np.diff(starts) <= clip.frames - clip.overlap).all()
        assert starts[-1] == max(0, frames - clip.frames)


def starts(sampling, frames=10, labelled=None, per_case=1, clip_frames=3, stride=1, mask=True):
    outputs, targets = (MASK, {}) if mask else (EF, {"ef": 55.0})
    clip = ClipConfig(frames=clip_frames, stride=stride, sampling=sampling, per_case=per_case)
    return [item.start for item in training_items([case(frames, labelled, mask, targets=targets)], clip, outputs)]


def test_ways_to_cut_clips():
    assert starts("random", per_case=2) == [None, None]
    assert starts("equispaced", per_case=3) == [0, 3, 7]
    assert starts("dense", frames=4) == [-1, 0, 1, 2]
    assert starts("all") == [0, 3, 6, 7]
    assert starts("all", frames=2) == [0]
    assert starts("dense", labelled=(0, 9)) == [-1, 8]
    assert starts("all", labelled=(4,)) == [3]
    assert starts("equispaced", per_case=3, labelled=(9,)) == [7]
    assert starts("dense", frames=3, mask=False) == [-1, 0, 1]


def test_all_reaches_every_frame():
    for frames in range(1, 25):
        seen = {start + t for start in starts("all", frames) for t in range(3)}
        assert seen >= set(range(frames))


def test_all_with_a_stride_reaches_every_frame():
    seen = {start + 2 * t for start in starts("all", 20, stride=2) for t in range(3)}
    assert seen >= set(range(20))


def test_nothing_labelled_is_refused():
    with pytest.raises(DataError) as info:
        training_items([case(labelled=())], ClipConfig(), MASK)
    assert str(info.value) == (
        "No training clip can be cut from the 1 training cases: nothing is known of what shall be predicted."
    )


def test_a_case_nobody_labelled_is_left_out_of_training():
    items = training_items([case(labelled=()), case(labelled=(3,), name="b")], ClipConfig(frames=3), MASK)
    assert items == [ClipItem(1, None)]


def patients() -> tuple[list[Case], list[ClipItem]]:
    """Three patients: one with two videos, of 7 and 4 clips, one with 4 clips, one with 2."""
    cases = [
        case(7, name="a1"),
        case(4, name="b"),
        case(4, name="a2"),
        case(2, name="c"),
    ]
    cases = [replace(one, group_id=one.case_id[0]) for one in cases]
    clip = ClipConfig(frames=1, sampling="all")
    return cases, training_items(cases, clip, MASK)


def chosen(numerosity, epoch, first=None, processes=1, batch=2) -> list[int]:
    """The items an epoch trains on, over all processes, from a step of it on."""
    per_epoch = steps_per_epoch(len(numerosity), batch)
    begin = epoch * per_epoch if first is None else first
    found = []
    for rank in range(processes):
        share = RankBatches(5, len(numerosity), batch, 1, rank, processes, begin, (epoch + 1) * per_epoch, numerosity)
        found += [key.item for keys in share for key in keys]
    return found


def limit(most, numerosity):
    cases, items = patients()
    return limited(items, cases, ClipConfig(frames=1, max_numerosity=most, numerosity=numerosity)), cases, items


def by_patient(found, cases, items) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = {}
    for number in sorted(set(found)):
        groups.setdefault(cases[items[number].case].group_id, []).append(number)
    return groups


def test_equispaced_clips_of_a_patient_are_the_same_in_every_epoch():
    """Over all videos of the patient: floor(linspace); of 4 clips and 3 places the clips 0, 1 and 3."""
    numerosity, cases, items = limit(3, "equispaced")
    assert len(items) == 17
    assert len(numerosity) == 8
    a, b = (by_patient(range(17), cases, items)[name] for name in "ab")
    for epoch in range(3):
        found = by_patient(chosen(numerosity, epoch), cases, items)
        assert found["a"] == [a[0], a[5], a[10]]
        assert found["b"] == [b[0], b[1], b[3]]
        assert len(found["c"]) == 2


def test_random_clips_of_a_patient_are_drawn_anew_every_epoch():
    """Any of them, the first too; never more than the limit, and none twice but to fill up the last batch."""
    numerosity, cases, items = limit(3, "random")
    seen_of_b: set[int] = set()
    epochs = [by_patient(chosen(numerosity, epoch), cases, items) for epoch in range(40)]
    for found in epochs:
        assert {name: len(numbers) for name, numbers in found.items()} == {"a": 3, "b": 3, "c": 2}
        seen_of_b |= set(found["b"])
    assert len(seen_of_b) == 4
    assert len({tuple(found["a"]) for found in epochs[:3]}) == 3
    assert [numerosity.items(5, epoch).tolist() for epoch in range(3)] == [
        numerosity.items(5, epoch).tolist() for epoch in range(3)
    ]
    assert numerosity.items(6, 0).tolist() != numerosity.items(5, 0).tolist()


@pytest.mark.parametrize("kind", ["equispaced", "random"])
@pytest.mark.parametrize("processes", [1, 2])
def test_limited_clips_survive_two_resumes_and_any_number_of_processes(kind, processes):
    """Three epochs in one go, or broken off within the first and the third: the same clips, in the same order."""
    numerosity, *_ = limit(3, kind)
    per_epoch = steps_per_epoch(len(numerosity), 2)

    def keys(first, last) -> list[list[list[ClipKey]]]:
        return [
            list(RankBatches(5, len(numerosity), 2, 1, rank, processes, first, last, numerosity))
            for rank in range(processes)
        ]

    whole = keys(0, 3 * per_epoch)
    parts = [keys(0, 1), keys(1, 2 * per_epoch + 3), keys(2 * per_epoch + 3, 3 * per_epoch)]
    assert [[keys for part in parts for keys in part[rank]] for rank in range(processes)] == whole
    steps = zip(*whole, strict=True)
    together = [[key for share in step for key in share] for step in steps]
    assert together == list(RankBatches(5, len(numerosity), 2, 1, 0, 1, 0, 3 * per_epoch, numerosity))


@pytest.mark.parametrize("most", [11, 100])
def test_a_limit_that_no_patient_reaches_takes_every_clip(most):
    for kind in ("equispaced", "random"):
        numerosity, _, items = limit(most, kind)
        assert sorted(numerosity.items(0, 3)) == list(range(len(items)))


@given(st.integers(1, 12), st.integers(0, 2**40), st.integers(0, 500), st.sampled_from(["equispaced", "random"]))
def test_no_patient_gets_more_clips_than_the_limit(most, seed, epoch, kind):
    numerosity, cases, items = limit(most, kind)
    found = numerosity.items(seed, epoch)
    assert len(set(found)) == len(found) == len(numerosity)
    assert all(len(numbers) <= most for numbers in by_patient(found, cases, items).values())
