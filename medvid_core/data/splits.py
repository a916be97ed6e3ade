"""Divide cases into train, val and test, whole groups (patients) at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from medvid_core.config import SplitConfig
from medvid_core.data.clip import Case
from medvid_core.data.folds import split_by_file
from medvid_core.errors import DataError

PARTS = ("train", "val", "test")
STRADDLING = (
    "clips of one patient are on both sides of the split (split.group=none): the result says nothing of other patients"
)
"""What a reader of a result must know where `straddles`."""

Splits = dict[str, list[Case]]


def split_cases(cases: Sequence[Case], config: SplitConfig, training: bool = True) -> Splits:
    """Return the cases of each part.

    A data set that fixes the parts is obeyed; if it fixes no validation part, one is taken out of the training
    groups. Otherwise the groups are shuffled by ``config.seed`` and divided by the fractions. Without ``training``
    no case need be left to train on: a folder of test cases alone can be scored. With ``config.group="none"`` every
    case is divided as a group of its own; it still says whose it is. With ``config.file`` the parts are those of a fold
    (`medvid_core.data.folds`), whatever the data set says.

    Raises:
        DataError: a group in two parts, an unknown part, some cases with a part and some without, or no
            training case.
    """
    if config.file:
        return split_by_file(cases, config)
    if config.group == "none":
        alone = [replace(case, group_id=case.case_id) for case in cases]
        divided = split_cases(alone, replace(config, group="patient"), training)
        return recorded_splits(cases, {part: [case.case_id for case in members] for part, members in divided.items()})
    splits: Splits = {part: [] for part in PARTS}
    if fixes_parts(cases):
        for case in cases:
            splits[str(case.split)].append(case)
        if not splits["val"]:
            _take(splits, "val", config.val, config.seed)
    else:
        splits["train"] = list(cases)
        if config.test and len(cases) > 1 and len({case.group_id for case in cases}) == 1:
            raise DataError(
                f"All {len(cases)} cases are of one patient (group {cases[0].group_id!r}), so that none can be held "
                "out for the test. Add other patients, hold none out (split.test=0), or divide the clips of this one "
                "(split.group=none), knowing that the result says nothing of other patients."
            )
        test_share = config.test
        _take(splits, "test", test_share, config.seed)
        _take(splits, "val", config.val / (1 - test_share), config.seed + 1)
    check_splits(splits, training)
    return splits


def fixes_parts(cases: Sequence[Case]) -> bool:
    """Whether the data set says of every case which part it is in.

    Raises:
        DataError: it does of some only, or names a part that is none.
    """
    fixed = [case.split is not None for case in cases]
    if any(fixed) and not all(fixed):
        example = next(case.case_id for case in cases if case.split is None)
        raise DataError(f"Some cases name a split and some do not (e.g. {example!r}). Give every case one, or none.")
    for case in cases:
        if case.split is not None and case.split not in PARTS:
            raise DataError(f"Case {case.case_id!r} has split {case.split!r}; it must be one of train, val, test.")
    return any(fixed)


def recorded_splits(cases: Sequence[Case], recorded: Mapping[str, Sequence[str]]) -> Splits:
    """Return the cases of each part as a run recorded them (``splits.json``), by case id.

    Cases that came after the run stand in no part: dividing anew could make a case the run was trained on a test case.
    """
    by_id = {case.case_id: case for case in cases}
    return {part: [by_id[name] for name in recorded.get(part, ()) if name in by_id] for part in PARTS}


def straddles(splits: Splits) -> bool:
    """Whether a patient stands in two parts, as ``split.group=none`` allows."""
    groups = [{case.group_id for case in cases} for cases in splits.values()]
    return len(set().union(*groups)) < sum(map(len, groups))


def _take(splits: Splits, part: str, fraction: float, seed: int) -> None:
    """Move a fraction of the training groups to another part; at least one if asked for, never the last."""
    groups = sorted({case.group_id for case in splits["train"]})
    count = min(max(round(fraction * len(groups)), 1), len(groups) - 1) if fraction > 0 else 0
    moved = set(np.random.default_rng(seed).permutation(np.array(groups, dtype=object))[:count])
    splits[part] = [case for case in splits["train"] if case.group_id in moved]
    splits["train"] = [case for case in splits["train"] if case.group_id not in moved]


def check_splits(splits: Splits, training: bool = True) -> None:
    """Refuse a division in which a patient stands in two parts, or (``training``) that leaves nothing to train on."""
    owner: dict[str, str] = {}
    for part, cases in splits.items():
        for case in cases:
            if owner.setdefault(case.group_id, part) != part:
                raise DataError(
                    f"Group {case.group_id!r} (case {case.case_id!r}) is in both {owner[case.group_id]} and {part}: "
                    "the result would be too good. Give all cases of a patient the same split."
                )
    if training and not splits["train"]:
        raise DataError("There is no training case: every case is in val or test.")
