"""The folds of a cross-validation: made once, written to a file, and from then on read from it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from medvid_core.config import Composed
from medvid_core.data.clip import Case
from medvid_core.data.folds import Folds, check_classes, check_folds, content_of, made_with, make_folds, read_folds
from medvid_core.data.splits import fixes_parts
from medvid_core.engine.ensemble import FOLDS
from medvid_core.engine.progress import Progress
from medvid_core.engine.run import read_json, write_json
from medvid_core.engine.setup import accelerator, open_dataset
from medvid_core.errors import ConfigError, DataError
from medvid_core.models import usable_outputs
from medvid_core.specs import OutputSpec

DEFAULT_FOLDS = 5


def agree_on_folds(out: Path, composed: Composed, wanted: int | None, progress: Progress) -> Folds:
    """Return the folds of the folder, made and written by the main process where there are none yet.

    Args:
        out: the folder of the cross-validation.
        composed: the configuration; ``split.file`` may name folds to take over.
        wanted: how many; None for those of the file, else `DEFAULT_FOLDS`.
        progress: shows lines of progress.

    Raises:
        DataError: they do not divide the data, or a class is missing where it must be learnt. ConfigError: they are not
            those that are asked for.
    """
    index, config = open_dataset(composed), composed.config
    outputs = usable_outputs(composed.model, index.outputs, config.outputs)
    path = out / FOLDS
    front = accelerator()
    source = path if path.is_file() else Path(config.split.file) if config.split.file else None
    front.wait_for_everyone()  # until all have looked: one of them writes it now
    if source is not None:
        folds = read_folds(source)
        if source == path:
            _check_same(folds, path, composed, wanted)
        elif wanted not in (None, len(folds.test)):
            raise ConfigError(f"{source} holds {len(folds.test)} folds, not {wanted}. Leave --folds out.")
        where = str(source)
        check_folds(folds, index.cases, config.split, where)
    progress.say(f"looking  at what {len(index.cases)} cases hold")
    contents = {case.case_id: content_of(case, outputs) for case in progress.track(index.cases, "cases")}
    if source is None:
        held_out, cases = _held_out(index.cases)
        known = [contents[case.case_id] for case in cases]
        _check_known(cases, outputs)
        count = DEFAULT_FOLDS if wanted is None else wanted
        folds = make_folds(cases, outputs, known, count, config.split, held_out)
        where = f"These {count} folds"
    check_classes(folds, contents, where)
    if front.is_main_process and source != path:
        out.mkdir(parents=True, exist_ok=True)
        write_json(path, folds.to_dict())
    front.wait_for_everyone()
    sizes = " + ".join(str(len(names)) for names in folds.test)
    progress.say(
        f"folds    {sizes} test cases: {path}" + (f"; {len(folds.held_out)} held out" if folds.held_out else "")
    )
    return folds


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


def check_trained(directory: Path, folds: Folds, fold: int) -> None:
    """Refuse a run that was trained with other parts than the fold now has.

    Raises:
        DataError: naming the run.
    """
    if not (directory / "run.json").is_file():
        return
    recorded = {part: set(names) for part, names in read_json(directory / "splits.json").items()}
    test, val = set(folds.test[fold]), set(folds.val[fold])
    other = (recorded.get("test", set()) - test) | (recorded.get("val", set()) - val)  # fewer: they cannot be read
    if other or recorded.get("train", set()) & (test | val):
        raise DataError(
            f"{directory} was trained before fold {fold} was changed. Restore {FOLDS}, or remove this run to train it "
            "anew."
        )
