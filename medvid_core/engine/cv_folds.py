"""The folds of a cross-validation: made once, written to a file, and from then on read from it."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import distributed

from medvid_core.config import Composed
from medvid_core.data.clip import Case, Index
from medvid_core.data.contents import Content, classes_of, content_of, key_of, masks_of
from medvid_core.data.folds import Folds, check_classes, check_folds, lacking, made_with, make_folds, read_folds
from medvid_core.data.splits import fixes_parts
from medvid_core.engine.ensemble import FOLDS
from medvid_core.engine.prepare import open_prepared
from medvid_core.engine.progress import Progress
from medvid_core.engine.run import fingerprint, read_json, write_json
from medvid_core.engine.setup import accelerator
from medvid_core.errors import ConfigError, DataError, MedvidError
from medvid_core.models import usable_outputs
from medvid_core.plugins import Registry
from medvid_core.specs import OutputSpec

DEFAULT_FOLDS = 5
CONTENTS = "contents.json"
"""What every case holds, beside the folds: looked at once, and again where files were changed."""
_PATIENCE = datetime.timedelta(days=1)
"""How long processes wait for the main one, which looks at all masks."""


@dataclass(frozen=True)
class Divided:
    """Data divided into folds.

    Attributes:
        folds: which case is where.
        contents: what each case holds, by id.
        lost: classes that are known of the cases that cannot be prepared, by id.
        fingerprint: of the data.
    """

    folds: Folds
    contents: Mapping[str, Content] = field(default_factory=dict)
    lost: Mapping[str, frozenset[str]] = field(default_factory=dict)
    fingerprint: str = ""

    def lines(self, path: Path) -> list[str]:
        """Return how the folds came out, in words."""
        sizes = " + ".join(str(len(names)) for names in self.folds.test)
        held_out = f"; {len(self.folds.held_out)} held out" if self.folds.held_out else ""
        untested = lacking(self.folds, self.contents, "test").items()
        return [
            f"folds    {sizes} test cases: {path}{held_out}",
            *(f"note     no test case of fold {number} holds {', '.join(names)}" for number, names in untested),
        ]


def agree_on_folds(out: Path, composed: Composed, wanted: int | None, plugins: Registry, progress: Progress) -> Divided:
    """Return the folds of the folder, made and written by the main process where there are none yet.

    Cases are prepared first, where the model's videos are, so that only those are divided that can be used.

    Args:
        out: the folder of the cross-validation.
        composed: the configuration; ``split.file`` may name folds to take over.
        wanted: how many; None for those of the file, else `DEFAULT_FOLDS`.
        plugins: the installed plugins.
        progress: shows lines of progress.

    Raises:
        DataError: they do not divide the data, a class is missing where it must be learnt, or masks were changed after
            models were trained here. ConfigError: they are not those that are asked for.
    """
    front = accelerator()
    index, cases = open_prepared(composed, plugins, front, progress)
    if front.num_processes == 1:
        return _divided(out, composed, index, cases, wanted, progress)
    answer: list[Divided | MedvidError | None] = [None]
    group: Any = distributed.new_group(backend="gloo", timeout=_PATIENCE)
    if front.is_main_process:
        try:
            answer[0] = _divided(out, composed, index, cases, wanted, progress)
        except MedvidError as error:
            answer[0] = error
    distributed.broadcast_object_list(answer, src=0, group=group)
    distributed.destroy_process_group(group)
    if isinstance(answer[0], MedvidError):
        raise answer[0]
    assert answer[0] is not None
    return answer[0]


def _divided(
    out: Path, composed: Composed, index: Index, cases: Sequence[Case], wanted: int | None, progress: Progress
) -> Divided:
    """Read the folds, or make and write them, of the cases that are at hand."""
    config = composed.config
    outputs = usable_outputs(composed.model, index.outputs, config.outputs)
    path = out / FOLDS
    source = path if path.is_file() else Path(config.split.file) if config.split.file else path
    if source.is_file() or source != path:
        folds = read_folds(source)
        if source == path:
            _check_same(folds, path, composed, wanted)
        elif wanted not in (None, len(folds.test)):
            raise ConfigError(f"{source} holds {len(folds.test)} folds, not {wanted}. Leave --folds out.")
        # what could not be prepared when they were made stands nowhere in them; what cannot now may
        gone = {case.case_id for case in index.cases} - {case.case_id for case in cases}
        gone -= {name for names in (*folds.test, folds.held_out) for name in names}
        check_folds(folds, [case for case in index.cases if case.case_id not in gone], config.split, str(source))
        contents = _contents(out, cases, outputs, progress)
    else:
        held_out, folded = _held_out(cases)
        _check_known(folded, outputs)
        contents = _contents(out, cases, outputs, progress)
        known = [contents[case.case_id] for case in folded]
        left_out = [case.case_id for case in index.cases if case.case_id not in contents]
        count = DEFAULT_FOLDS if wanted is None else wanted
        folds = make_folds(folded, outputs, known, count, config.split, held_out, left_out)
        _write(path, folds)  # also if they are refused: then they can be edited
    check_classes(folds, contents, str(source))
    if source != path:
        _write(path, folds)
    lost = {case.case_id: classes_of(case, outputs) for case in index.cases if case.case_id not in contents}
    found = Divided(folds, contents, lost, fingerprint(index))
    for line in found.lines(path):
        progress.say(line)
    return found


def _write(path: Path, folds: Folds) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, folds.to_dict())


def _contents(
    out: Path, cases: Sequence[Case], outputs: Sequence[OutputSpec], progress: Progress
) -> dict[str, Content]:
    """Return what each case holds; masks are looked at where that was not done yet, or files were changed since.

    Raises:
        DataError: masks are others than those that models in the folder were trained with.
    """
    if masks_of(outputs) is None:
        return {case.case_id: content_of(case, outputs) for case in cases}
    path = out / CONTENTS
    try:
        kept = {name: Content.from_dict(data) for name, data in read_json(path).items()}
    except (AttributeError, KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged: {error!r}. Remove it to go on without it.") from error
    progress.say(f"looking  at what {len(cases)} cases hold")
    found = {}
    for case in progress.track(cases, "cases"):
        before = kept.get(case.case_id)
        same = before is not None and before.key == key_of(case, outputs)
        found[case.case_id] = before if before is not None and same else content_of(case, outputs)
    changed = [name for name, content in found.items() if name in kept and kept[name].digest != content.digest]
    trained = next((run for glob in ("fold*", "grid/*/fold*", "final") for run in out.glob(f"{glob}/run.json")), None)
    if changed and trained:
        raise DataError(
            f"The masks of {len(changed)} case(s), e.g. {changed[0]!r}, were changed after {trained.parent} was "
            "trained: results on different masks cannot be pooled. Restore them, or choose another --out."
        )
    if found != kept:
        out.mkdir(parents=True, exist_ok=True)
        write_json(path, {name: content.to_dict() for name, content in found.items()})
    return found


def _held_out(cases: Sequence[Case]) -> tuple[list[str], list[Case]]:
    """Return the ids of the test cases that the data set fixes, and all others."""
    if not fixes_parts(cases):
        return [], list(cases)
    return [c.case_id for c in cases if c.split == "test"], [case for case in cases if case.split != "test"]


def _check_known(cases: Sequence[Case], outputs: Sequence[OutputSpec]) -> None:
    """Refuse data of which nothing is known.

    Raises:
        DataError: there is no case, or none with anything to learn.
    """
    if not any(case.knows(output) for case in cases for output in outputs):
        named = ", ".join(output.name for output in outputs)
        raise DataError(f"Nothing is known of {named} in all {len(cases)} cases that are not held out. Annotate some.")


def _check_same(folds: Folds, path: Path, composed: Composed, wanted: int | None) -> None:
    """Refuse to go on with folds that are not those asked for.

    Raises:
        ConfigError: naming the setting.
    """
    count = len(folds.test)
    if wanted not in (None, count):
        raise ConfigError(f"{path} holds {count} folds, not {wanted}. Choose another --out, or remove it.")
    asked = made_with(count, composed.config.split)
    for key, value in folds.made_with.items():
        if key != "folds" and key in asked and asked[key] != value:
            raise ConfigError(
                f"{path} was made with split.{key}={value}, not {asked[key]}. Choose another --out, or remove it."
            )
    given = composed.config.split.file
    if given and Path(given).resolve() != path.resolve() and _division(read_folds(Path(given))) != _division(folds):
        raise ConfigError(f"{path} holds other folds than {given}. Choose another --out, or remove it.")


def _division(folds: Folds) -> object:
    return [set(names) for names in (*folds.test, *folds.val, folds.held_out)]


def check_trained(directory: Path, divided: Divided, fold: int | None) -> None:
    """Refuse a run that was trained with other data or parts than the fold now has, or has no result of its test part.

    Args:
        directory: of the run; one that has not begun is passed over.
        divided: the data as they are divided now.
        fold: of the run; None: the final model, trained on all that is not held out.

    Raises:
        DataError: naming the run.
    """
    if not (directory / "run.json").is_file():
        return
    record = read_json(directory / "run.json")
    data = record.get("dataset") or {}
    if data.get("fingerprint") != divided.fingerprint:
        raise DataError(
            f"{directory} was trained on other data than there are now: cases, or what is known of them, were changed. "
            "Restore the data, or choose another --out."
        )
    recorded = read_json(directory / "splits.json")
    for part, names in divided.folds.ids(fold).items():
        if set(recorded.get(part, ())) != names - set(data.get("skipped") or ()):  # those that cannot be prepared
            raise DataError(
                f"{directory} was trained before the folds were changed: its {part} part was another. Restore {FOLDS}, "
                "or remove this run to train it anew."
            )
    if fold is not None and record.get("status") == "done" and record.get("split") != "test":
        raise DataError(
            f"Fold {fold} has no result: not one of its {len(divided.folds.test[fold])} test cases can be used (see "
            f"'skipped' in {directory / 'run.json'}). Mend them, or take them out of the data and choose another --out."
        )
