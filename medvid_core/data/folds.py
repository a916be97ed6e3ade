"""Folds of a cross-validation: whole patients, alike in what they hold, in a file that people can read and edit.

The division is that of scikit-learn's ``StratifiedGroupKFold``: groups are taken one by one, those with the most uneven
labels first, and each is put where the labels then spread most evenly over the folds.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medvid_core.config import SplitConfig
from medvid_core.data.clip import Case
from medvid_core.data.contents import Content, known_classes
from medvid_core.errors import ConfigError, DataError, did_you_mean
from medvid_core.specs import OutputSpec

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

_VALIDATION_DRAWS = 100
_OF_A_CASE = ("classification", "ordinal", "multilabel", "anomaly", "regression")
"""Tasks whose target says by itself what cases shall be spread over the folds."""


@dataclass(frozen=True)
class Folds:
    """Which cases each fold tests and validates on; it trains on all others that are not held out.

    Attributes:
        test: ids of the test cases of each fold; every case that is not held out is in one of them.
        val: ids of the cases each fold chooses its checkpoint by.
        held_out: ids of cases that no fold sees, the test part that the data set fixes.
        left_out: ids of cases that could not be prepared when the folds were made.
        made_with: the settings they were made with; empty where they were written by hand.
        imbalance: see `imbalance_of`; NaN where unknown.
    """

    test: tuple[tuple[str, ...], ...]
    val: tuple[tuple[str, ...], ...]
    held_out: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    made_with: Mapping[str, Any] = field(default_factory=dict)
    imbalance: float = float("nan")

    @property
    def unused(self) -> frozenset[str]:
        """The ids of ``left_out`` that nobody has put into a fold since: another model could use them, but does not."""
        return frozenset(self.left_out).difference(*self.test, self.held_out)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, as the file holds it."""
        folds = [{"test": list(test), "val": list(val)} for test, val in zip(self.test, self.val, strict=True)]
        known = {} if np.isnan(self.imbalance) else {"imbalance": round(self.imbalance, 4)}
        apart = {"held_out": list(self.held_out), "left_out": list(self.left_out)}
        return {"made_with": dict(self.made_with), **known, **apart, "folds": folds}

    def ids(self, fold: int | None) -> dict[str, set[str]]:
        """Return the ids of the cases of each part of a fold; of None all that any fold trains on, and the held out."""
        val, test = (set(), self.held_out) if fold is None else (set(self.val[fold]), self.test[fold])
        out = {*val, *test, *self.held_out}
        return {"train": {name for names in self.test for name in names} - out, "val": val, "test": set(test)}

    def parts(self, cases: Sequence[Case], fold: int | None) -> dict[str, list[Case]]:
        """Return the cases of `ids`, in the order of ``cases``."""
        ids = self.ids(fold)
        return {part: [case for case in cases if case.case_id in names] for part, names in ids.items()}


def stratified_folds(
    groups: npt.ArrayLike, labels: npt.ArrayLike, folds: int, seed: int | None = None, weights: Floats | None = None
) -> Integers:
    """Return the fold of each row [N]: no group in two, labels spread evenly.

    With weights of 1 the result is that of scikit-learn 1.9's ``StratifiedGroupKFold(folds, shuffle=seed is not None,
    random_state=seed)``.

    Args:
        groups: of each row.
        labels: of each row.
        folds: how many.
        seed: shuffles the groups first, which decides between those that are alike; None: they come in order.
        weights: how much each row counts, [N].
    """
    names, of_group = np.unique(np.asarray(groups), return_inverse=True)
    classes, of_label = np.unique(np.asarray(labels), return_inverse=True)
    counts = np.zeros((len(names), len(classes)))
    np.add.at(counts, (of_group, of_label), 1.0 if weights is None else weights)
    order = np.arange(len(names))
    if seed is not None:
        np.random.RandomState(seed).shuffle(order)
    order = order[np.argsort(-np.std(counts[order], axis=1), kind="stable")]
    total = counts.sum(0)
    filled = np.zeros((folds, len(classes)))
    chosen = np.zeros(len(names), np.int64)
    for group in order:
        spreads, sizes = [], filled.sum(1)
        for fold in range(folds):
            filled[fold] += counts[group]
            spreads.append(float(np.mean(np.std(filled / total, axis=0))))
            filled[fold] -= counts[group]
        best = 0
        for fold in range(1, folds):
            smaller = np.isclose(spreads[fold], spreads[best]) and sizes[fold] < sizes[best]
            best = fold if spreads[fold] < spreads[best] or smaller else best
        filled[best] += counts[group]
        chosen[group] = best
    return chosen[of_group]


def imbalance_of(fold: Integers, shares: Floats, weights: Floats) -> float:
    """Return by how much folds and what is left of each differ from the whole: 0 where all are alike.

    Σ_j |share of j in the fold - share of j in all| + the same of all other folds together, mean over folds.

    Args:
        fold: of each case, [N].
        shares: what each case holds of each thing, [N,J], from 0 to 1.
        weights: how much each case counts, [N].
    """
    whole = weights @ shares / weights.sum()
    found = []
    for number in np.unique(fold):
        for part in (fold == number, fold != number):
            if part.any():
                found.append(np.abs(weights[part] @ shares[part] / weights[part].sum() - whole).sum())
    return float(np.sum(found) / len(np.unique(fold)))


def strata(
    cases: Sequence[Case], outputs: Sequence[OutputSpec], contents: Sequence[Content], stratify: str
) -> list[tuple[str, ...]]:
    """Return what folds are balanced by, one tuple of words a case.

    ``auto``: the first target of a whole case that the outputs have: its class, grade, labels, or the quarter its
    number lies in; where there is none, as of masks, the compound stratum. ``compound`` (Vivim's ovarian extension):
    the same target, `Case.stratum`, the quarter of annotated frames, and of each class of masks whether the case holds
    more or less of it than the median. ``none``: all cases are alike.
    """
    if stratify == "none":
        return [() for _ in cases]
    output = next((output for output in outputs if output.task in _OF_A_CASE and _has_target(cases, output)), None)
    targets = [] if output is None else [_target_words(cases, output)]
    if output is not None and stratify == "auto":
        return list(zip(*targets, strict=True))
    columns = [*targets, [case.stratum for case in cases]]
    masks = bool(contents and contents[0].shares)
    columns.append(
        _quarters([content.annotated if masks else case.frames for case, content in zip(cases, contents, strict=True)])
    )
    for share in zip(*(content.shares for content in contents), strict=True) if masks else ():
        columns.append(["high" if value > np.median(share) else "low" for value in share])
    return list(zip(*columns, strict=True))


def _has_target(cases: Sequence[Case], output: OutputSpec) -> bool:
    return any(output.name in case.targets or output.name in case.frame_targets for case in cases)


def _target_words(cases: Sequence[Case], output: OutputSpec) -> list[str]:
    """Return one word a case for what is true of it; ``unknown`` where nothing is known."""
    if output.task == "regression":
        values = [np.asarray(case.targets.get(output.name, np.nan), np.float64).reshape(-1)[0] for case in cases]
        words = iter(_quarters([value for value in values if not np.isnan(value)]))
        return ["unknown" if np.isnan(value) else next(words) for value in values]
    return [_target_word(case, output) for case in cases]


def _target_word(case: Case, output: OutputSpec) -> str:
    if output.task == "anomaly":
        frames = np.asarray(case.frame_targets.get(output.name, ()), np.float64)
        known = [*np.ravel(np.asarray(case.targets.get(output.name, ()), np.float64)), *frames[~np.isnan(frames)]]
        return "unknown" if not known else "abnormal" if max(known) > 0 else "normal"
    if output.name not in case.targets:
        return "unknown"
    if output.task == "multilabel":
        return "+".join(sorted(known_classes(case, output))) or "no label"
    return output.classes[int(np.asarray(case.targets[output.name]))]


def _quarters(values: Sequence[float]) -> list[str]:
    """Return the quarter each value lies in; equal values lie in the same."""
    if not len(values):
        return []
    ends = np.quantile(np.asarray(values, np.float64), (0.25, 0.5, 0.75))
    return [f"quarter {int((value > ends).sum()) + 1}" for value in values]


def make_folds(
    cases: Sequence[Case],
    outputs: Sequence[OutputSpec],
    contents: Sequence[Content],
    count: int,
    config: SplitConfig,
    held_out: Sequence[str] = (),
    left_out: Sequence[str] = (),
) -> Folds:
    """Divide cases into folds, and take the validation cases of each out of the others.

    Of ``config.attempts`` shuffles, with seeds from ``config.seed`` on, the most even is taken (`imbalance_of`) among
    those in which the fewest folds train, then test, without a class; with 0 groups are not shuffled. Validation cases:
    of some random draws of whole groups likewise.

    Args:
        cases: those to divide.
        outputs: what is predicted.
        contents: of each case, see `content_of`.
        count: number of folds.
        config: seed, fraction of validation groups, grouping, attempts.
        held_out: ids of cases that no fold shall see.
        left_out: ids of cases that could not be prepared.

    Raises:
        ConfigError: fewer than two folds. DataError: fewer groups than folds.
    """
    if count < 2:
        raise ConfigError(f"--folds {count} cannot be used: it must be at least 2.")
    groups = np.array(groups_of(cases, config))
    names = np.unique(groups)
    if len(names) < count:
        what = "cases" if config.group == "none" else "patients"
        raise DataError(f"{len(names)} {what} cannot be divided into {count} folds. Choose fewer with --folds.")
    words = strata(cases, outputs, contents, config.stratify)
    labels = ["_".join(each) for each in words]
    weights = np.array([max(1, content.annotated) for content in contents], np.float64)
    shares = _shares(words, contents)
    holds = _holds(contents)
    seeds: list[int | None] = [config.seed + number for number in range(config.attempts)]
    tried = [stratified_folds(groups, labels, count, seed, weights) for seed in seeds or [None]]
    fold = min(tried, key=lambda fold: (*_lacking(fold, holds), imbalance_of(fold, shares, weights)))
    ids = np.array([case.case_id for case in cases])
    validation = [_validation(groups, fold != n, shares, weights, holds, config, n) for n in range(count)]
    return Folds(
        test=tuple(tuple(ids[fold == number].tolist()) for number in range(count)),
        val=tuple(tuple(ids[part].tolist()) for part in validation),
        held_out=tuple(held_out),
        left_out=tuple(left_out),
        made_with=made_with(count, config),
        imbalance=imbalance_of(fold, shares, weights),
    )


def groups_of(cases: Sequence[Case], config: SplitConfig) -> list[str]:
    """Return what stays together: the patient of each case, or with ``group=none`` the case itself."""
    return [case.case_id if config.group == "none" else case.group_id for case in cases]


def made_with(count: int, config: SplitConfig) -> dict[str, Any]:
    """Return the settings that determine folds."""
    keys = ("val", "seed", "group", "stratify", "attempts")
    return {"folds": count, **{key: getattr(config, key) for key in keys}}


def _shares(words: Sequence[tuple[str, ...]], contents: Sequence[Content]) -> Floats:
    """Return what evenness is measured by, [N,J]: the words of the strata, and in how many frames each class stands."""
    columns = [
        [float(word == value) for word in column]
        for column in zip(*words, strict=True)
        for value in sorted(set(column))
    ]
    presence = [list(column) for column in zip(*(content.presence for content in contents), strict=True)]
    return np.array([*columns, *presence], np.float64).reshape(-1, len(words)).T


def _holds(contents: Sequence[Content]) -> Bools:
    """Return which case holds which class, [N,K]."""
    labels = sorted({label for content in contents for label in content.classes})
    return np.array([[label in content.classes for label in labels] for content in contents], bool)


def _lacking(fold: Integers, holds: Bools) -> tuple[int, int]:
    """Return how many classes folds train and test without, summed over folds."""
    numbers = np.unique(fold)
    train = sum(int((~holds[fold != number].any(0)).sum()) for number in numbers)
    return train, sum(int((~holds[fold == number].any(0)).sum()) for number in numbers)


def _validation(
    groups: npt.NDArray[Any],
    rest: Bools,
    shares: Floats,
    weights: Floats,
    holds: Bools,
    config: SplitConfig,
    fold: int,
) -> Bools:
    """Return which cases a fold validates on, [N]: of draws from the groups it does not test, the most even one.

    One that leaves a class for training comes before one that does not.
    """
    names = np.unique(groups[rest])
    count = min(max(round(config.val * len(names)), 1), len(names) - 1) if config.val > 0 else 0
    best, least = np.zeros(len(groups), bool), (np.inf, np.inf)
    rng = np.random.default_rng([config.seed, fold])
    for _ in range(_VALIDATION_DRAWS if count else 0):
        drawn = np.isin(groups, rng.permutation(names)[:count]) & rest
        lost = int((~holds[rest & ~drawn].any(0)).sum())
        found = (lost, imbalance_of(drawn[rest].astype(np.int64), shares[rest], weights[rest]))
        if found < least:
            best, least = drawn, found
    return best


def read_folds(path: Path) -> Folds:
    """Read a file of folds.

    Raises:
        DataError: it is absent, no JSON, or does not hold lists of case ids for every fold.
    """
    try:
        data = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"There is no file of folds {path}.") from error
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read as JSON: {error}. Mend it, or remove it to have it made anew."
        ) from error
    folds = data.get("folds") if isinstance(data, dict) else None
    if not isinstance(folds, list) or len(folds) < 2:
        raise DataError(f"{path} holds no folds: it needs a list 'folds' of two or more, as medvid-run cv writes it.")
    for number, fold in enumerate(folds):
        for part in ("test", "val"):
            if not isinstance(fold, dict) or not _is_ids(fold.get(part)):
                raise DataError(f"{path}: fold {number} needs a list {part!r} of case ids (of val it may be empty).")
    held_out, left_out, made = data.get("held_out", []), data.get("left_out", []), data.get("made_with", {})
    if not _is_ids(held_out) or not _is_ids(left_out) or not isinstance(made, dict):
        raise DataError(f"{path}: 'held_out' and 'left_out' must be lists of case ids and 'made_with' an object.")
    return Folds(
        test=tuple(tuple(fold["test"]) for fold in folds),
        val=tuple(tuple(fold["val"]) for fold in folds),
        held_out=tuple(held_out),
        left_out=tuple(left_out),
        made_with=made,
        imbalance=float(data.get("imbalance", "nan")),
    )


def _is_ids(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def check_folds(folds: Folds, cases: Sequence[Case], config: SplitConfig, where: str) -> None:
    """Refuse folds that do not divide these cases, whole patients at a time; those of `Folds.unused` are passed over.

    Args:
        folds: as made or read.
        cases: all cases of the data.
        config: whether patients stay together.
        where: the file, for the error.

    Raises:
        DataError: a case that the data do not hold, that stands in no fold or in two; a patient in two folds, or on
            both sides of one.
    """
    unused = folds.unused
    cases = [case for case in cases if case.case_id not in unused]
    known = {case.case_id: group for case, group in zip(cases, groups_of(cases, config), strict=True)}
    owner: dict[str, str] = {}
    places = [(f"the test part of fold {number}", names) for number, names in enumerate(folds.test)]
    places.append(("held_out", folds.held_out))
    for place, names in places:
        for name in names:
            _check_known(name, known, place, where)
            if name in owner:
                raise DataError(f"{where}: case {name!r} is in {owner[name]} and in {place}. Leave it in one of them.")
            owner[name] = place
    if missing := [name for name in known if name not in owner]:
        raise DataError(
            f"{where}: case {missing[0]!r} of the data is in no fold ({len(missing)} such). Put it into the test part "
            "of one fold, or into held_out; or remove the file to have the folds made anew."
        )
    homes: dict[str, str] = {}
    for name, place in owner.items():
        first = homes.setdefault(known[name], name)
        if owner[first] != place:
            raise DataError(
                f"{where}: patient {known[name]!r} is in {owner[first]} (case {first!r}) and in {place} (case "
                f"{name!r}): the result would be too good. Put all cases of a patient into one fold."
            )
    for number, (test, val) in enumerate(zip(folds.test, folds.val, strict=True)):
        if not test:
            raise DataError(f"{where}: fold {number} has no test case. Move some to it, or take the fold out.")
        _check_validation(number, set(test), set(val), set(folds.held_out), known, where)


def _check_validation(
    number: int, test: set[str], val: set[str], held_out: set[str], known: Mapping[str, str], where: str
) -> None:
    """Refuse a validation part whose cases are unknown, tested, held out, or of patients who are trained on."""
    for name in sorted(val):
        _check_known(name, known, f"the validation part of fold {number}", where)
        if name in test or name in held_out:
            raise DataError(f"{where}: case {name!r} is in the validation part of fold {number} and is tested there.")
    train = {group: name for name, group in known.items() if name not in val | test | held_out}
    for name in sorted(val):
        if known[name] in train:
            raise DataError(
                f"{where}: in fold {number} patient {known[name]!r} is validated on (case {name!r}) and trained on "
                f"(case {train[known[name]]!r}). Put all cases of a patient on one side."
            )
    if not train:
        raise DataError(f"{where}: fold {number} has no case left to train on.")


def _check_known(name: str, known: Mapping[str, str], place: str, where: str) -> None:
    if name not in known:
        raise DataError(f"{where}: {place} names case {name!r}, which the data do not hold.{did_you_mean(name, known)}")


def check_classes(folds: Folds, contents: Mapping[str, Content], where: str) -> None:
    """Refuse a fold that would train without a class that the data hold.

    Raises:
        DataError: naming fold and class.
    """
    for number, missing in lacking(folds, contents, "train").items():
        label, held_out = missing[0], set(folds.held_out)
        holders = [name for name, content in contents.items() if label in content.classes and name not in held_out]
        raise DataError(
            f"{where}: no training case of fold {number} holds {label} (cases that do: {', '.join(holders[:5])}"
            f"{', …' if len(holders) > 5 else ''}). Move some of them to another fold or out of 'val', divide into "
            "fewer folds (--folds), or leave the class out."
        )


def lacking(folds: Folds, contents: Mapping[str, Content], part: str) -> dict[int, list[str]]:
    """Return, by fold, the classes that no case of a part holds though the data do; only folds that lack any."""

    def classes(names: Iterable[str]) -> frozenset[str]:
        return frozenset[str]().union(*(contents[name].classes for name in names if name in contents))

    everything = classes(name for names in folds.test for name in names)
    found = {number: sorted(everything - classes(folds.ids(number)[part])) for number in range(len(folds.test))}
    return {number: missing for number, missing in found.items() if missing}


def split_by_file(cases: Sequence[Case], config: SplitConfig) -> dict[str, list[Case]]:
    """Return the parts that ``split.file`` and ``split.fold`` name.

    Raises:
        DataError: the file does not divide these cases. ConfigError: it has no such fold.
    """
    assert config.file is not None
    folds = read_folds(Path(config.file))
    check_folds(folds, cases, config, config.file)
    if config.fold is not None and config.fold >= len(folds.test):
        raise ConfigError(f"split.fold={config.fold}: {config.file} holds the folds 0 to {len(folds.test) - 1}.")
    return folds.parts(cases, config.fold)
