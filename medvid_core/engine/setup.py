"""What training, evaluation and prediction prepare in the same way."""

from __future__ import annotations

import atexit
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

from medvid_core.config import NO_PREPROCESSOR, Composed
from medvid_core.data.clip import Case, Index
from medvid_core.data.contents import known_classes
from medvid_core.data.folds import read_folds
from medvid_core.data.splits import PARTS, Splits, recorded_splits, split_cases
from medvid_core.engine.baselines import known_values
from medvid_core.errors import ConfigError, DataError
from medvid_core.models import ModelInfo, input_of, usable_outputs
from medvid_core.ops import BACKENDS, ScanMixer, choose_backend
from medvid_core.ops.backends import Choice
from medvid_core.plugins import Registry
from medvid_core.specs import ClipSpec, OutputSpec, resolve


@dataclass(frozen=True)
class Data:
    """The indexed data set of a run.

    Attributes:
        index: all cases as the data set has them.
        splits: the cases of each part, prepared where they have been.
        fallen: ids of cases that stand in a part of the run or file that is gone by, and could not be prepared.
    """

    index: Index
    splits: Splits
    fallen: tuple[str, ...] = ()


def accelerator(precision: str = "no") -> Accelerator:
    """Return the Accelerate front to the processes at hand: CPU, one GPU, or all that torchrun started.

    Raises:
        ConfigError: fp16 without a GPU, where Accelerate would quietly train in float32.
    """
    if precision == "fp16" and not torch.cuda.is_available():
        raise ConfigError("train.precision=fp16 needs a GPU. On a CPU use bf16, or no for float32.")
    state = AcceleratorState._shared_state
    if state and state.get("_mixed_precision") != precision:  # of an earlier run in this process
        AcceleratorState._reset_state()
    front = Accelerator(cpu=not torch.cuda.is_available(), mixed_precision=precision)
    atexit.unregister(_leave_group)
    atexit.register(_leave_group)
    return front


def _leave_group() -> None:
    """Part from the other processes; gloo's threads, where left running, abort the interpreter at its end."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def scan_choice(
    model: nn.Module, device: torch.device, precision: str = "no", trained: bool = False
) -> dict[str, str] | None:
    """Return how the scans of a model are computed, and why; None where it has none.

    Args:
        model: any model.
        device: where it will run.
        precision: ``no``, ``bf16`` or ``fp16``.
        trained: whether the model comes from elsewhere to be used: a backend that it was trained with and that cannot
            be used here is replaced, and the reason says so. Backends differ by rounding alone.

    Returns:
        ``backend`` and ``reason``. A model may ask for several backends: they are joined by commas.

    Raises:
        ConfigError: a backend is asked for by name that is unknown, absent, or does not take such tensors.
    """
    dtype = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    mixers = [module for module in model.modules() if isinstance(module, ScanMixer)]
    choices = []
    for name in dict.fromkeys(mixer.scan_backend for mixer in mixers):
        try:
            choices.append(choose_backend(name, device, dtype))
        except ConfigError:
            if not trained or name not in BACKENDS:
                raise
            usual = choose_backend("auto", device, dtype)
            choices.append(Choice(usual.name, f"{usual.reason}; trained with {name}, which cannot be used here"))
            for mixer in mixers:
                mixer.scan_backend = "auto" if mixer.scan_backend == name else mixer.scan_backend
    if len(choices) <= 1:
        return {"backend": choices[0].name, "reason": choices[0].reason} if choices else None
    return {
        "backend": ", ".join(choice.name for choice in choices),
        "reason": ", ".join(f"{choice.name} {choice.reason}" for choice in choices),
    }


def check_processes(found: int, expected: int | None) -> None:
    """Refuse to run with another number of processes than the user meant to start."""
    if expected is not None and found != expected:
        raise ConfigError(
            f"{found} process(es) run, --expect-processes says {expected}. On a CPU start them with: "
            f"torchrun --nproc_per_node {expected} -m medvid_core …"
        )


def open_dataset(composed: Composed) -> Index:
    """Index the data set of a configuration.

    Raises:
        DataError: no usable case, case ids that repeat, or a target that cannot be one.
    """
    config = composed.config
    root = Path(config.data_root) if config.data_root else None
    index: Index = resolve(composed.dataset.index)(root, config.dataset.config)
    if not index.cases:
        reasons = "; ".join(f"{case}: {reason}" for case, reason in list(index.skipped.items())[:3])
        raise DataError(
            f"Data set {config.dataset.name!r} at {config.data_root or '(generated)'} holds no usable case. {reasons}"
        )
    seen: set[str] = set()
    for case in index.cases:
        if case.case_id in seen:
            raise DataError(f"Case id {case.case_id!r} stands twice in the data set; ids must be unique.")
        seen.add(case.case_id)
        check_targets(case, index.outputs)
    return index


def check_targets(case: Case, outputs: Sequence[OutputSpec]) -> None:
    """Refuse a target that is no value of its output, before it becomes an index out of range or a loss of NaN.

    Raises:
        DataError: naming case, output and value.
    """
    for output in outputs:
        name, task, count = output.name, output.task, len(output.classes)
        several = task in ("regression", "multilabel")
        if name in case.targets:
            values = np.asarray(case.targets[name], np.float64).reshape(-1)
            if len(values) != (count if several else 1) or np.isnan(values).all():
                wanted = f"{count} numbers" if several and count > 1 else "a number"
                raise _strange(case, output, case.targets[name], f"{wanted}; leave it out where it is unknown")
            _check_values(case, output, values)
        if name in case.frame_targets:
            values = np.asarray(case.frame_targets[name], np.float64)
            if len(values) != case.frames:
                raise _strange(case, output, f"{len(values)} values", f"one for each of its {case.frames} frames")
            _check_values(case, output, values)


def _check_values(case: Case, output: OutputSpec, values: np.ndarray[Any, Any]) -> None:
    """Refuse values that are no number, class, grade, or yes or no; NaN is one that is unknown."""
    known = values[~np.isnan(values)]
    if output.task == "regression":
        wrong, allowed = known[~np.isfinite(known)], "a finite number"
    elif output.task in ("multilabel", "anomaly"):
        wrong, allowed = known[(known != 0) & (known != 1)], "0 or 1"
    else:
        most = len(output.classes) - 1
        wrong = known[(known != np.round(known)) | (known < 0) | (known > most)]
        allowed = f"0 to {most}, for {', '.join(output.classes)}"
    if len(wrong):
        raise _strange(case, output, f"{wrong[0]:g}", allowed)


def _strange(case: Case, output: OutputSpec, value: object, allowed: str) -> DataError:
    return DataError(
        f"Case {case.case_id!r}: the target {output.name!r} ({output.task}) is {value}; it must be {allowed}."
    )


def open_data(
    composed: Composed,
    index: Index | None = None,
    prepared: Mapping[str, Case] | None = None,
    recorded: Mapping[str, Sequence[str]] | None = None,
) -> Data:
    """Index the data set and divide it into train, val and test: of every case what the model's outputs need.

    Cases that could not be prepared are left out before the parts are drawn. A file of folds, and the parts of a run
    that is gone on with, stay as they are, without those cases.

    Args:
        composed: the configuration.
        index: the data set, with what could not be prepared, and why, among ``skipped``; None to open it.
        prepared: the cases that could be prepared, by id; None: they are not prepared, or not yet.
        recorded: part → case ids of the run that is gone on with, on the same data.

    Raises:
        DataError: as in `open_dataset`; nothing is known of all the cases of a part; or what could not be prepared
            leaves a part empty, or a class unlearnt.
    """
    index = open_dataset(composed) if index is None else index
    outputs = usable_outputs(composed.model, index.outputs, composed.config.outputs)
    splits, fallen = _divided(composed, index, prepared, recorded or {}, outputs)
    for part, cases in splits.items():
        if cases and not any(case.knows(output) for case in cases for output in outputs):
            named = ", ".join(output.name for output in outputs)
            raise DataError(
                f"Nothing is known of {named} in all {len(cases)} {part} case(s). Annotate some, or divide the cases "
                "otherwise: by their split, or split.seed, split.val and split.test where they have none."
            )
    return Data(index, {part: [case.only(outputs) for case in cases] for part, cases in splits.items()}, fallen)


def _divided(
    composed: Composed,
    index: Index,
    prepared: Mapping[str, Case] | None,
    recorded: Mapping[str, Sequence[str]],
    outputs: Sequence[OutputSpec],
) -> tuple[Splits, tuple[str, ...]]:
    """Return the parts, and the cases that fell out of parts that were given."""
    config, cases = composed.config.split, index.cases
    if composed.config.preprocess.name == NO_PREPROCESSOR:
        return split_cases(cases, config), ()
    named: set[str] = set()  # in parts that were made before
    if config.file:
        folds = read_folds(Path(config.file))
        named = {name for names in (*folds.test, *folds.val, folds.held_out) for name in names}
        known = {*named, *(prepared or ())}  # what could not be prepared when the file was made stands nowhere in it
        asked = split_cases([case for case in cases if case.case_id in known], config)
    elif recorded:
        named = {name for names in recorded.values() for name in names}
        asked = recorded_splits(cases, recorded)
    else:
        asked = split_cases(cases, config)
    if prepared is None:
        return asked, ()
    left = [case for case in cases if case.case_id in prepared]
    gone = [case for case in cases if case.case_id not in prepared]
    splits = asked if named else split_cases(left, config, training=False)
    splits = {part: [prepared[c.case_id] for c in found if c.case_id in prepared] for part, found in splits.items()}
    for part in PARTS:
        kinds = {case.split for case in asked[part]}  # a part that the data set fixes is not made of other cases
        if asked[part] and not any(case.split in kinds for case in splits[part]):
            raise DataError(
                f"No {part} case is left, as {len(gone)} of {len(cases)} case(s) could not be prepared: "
                f"{_few_reasons(index.skipped, [case.case_id for case in gone])} Mend or replace some, or divide the "
                "cases otherwise."
            )
    trained = {case.case_id for case in asked["train"]}
    lost = [
        case
        for case in gone
        if case.case_id in trained or (case.case_id not in named and case.split in (None, "train"))
    ]
    check_classes_left(lost, splits["train"], outputs, index.skipped)
    fell = named & {case.case_id for found in asked.values() for case in found} - set(prepared)
    return splits, tuple(sorted(fell))


def check_classes_left(
    lost: Sequence[Case], training: Sequence[Case], outputs: Sequence[OutputSpec], reasons: Mapping[str, str]
) -> None:
    """Refuse to train without a class that only cases hold that could not be prepared. Masks are not looked at.

    Args:
        lost: cases that could not be prepared and would have been trained on.
        training: cases that are trained on.
        outputs: what is predicted.
        reasons: id of a case → why it could not be prepared.

    Raises:
        DataError: naming class, cases and reasons.
    """
    for output in outputs:
        learnt = {name for case in training for name in known_classes(case, output)}
        for name in output.classes:
            ids = [case.case_id for case in lost if name in known_classes(case, output)]
            if ids and name not in learnt:
                raise DataError(
                    f"No training case is left that holds {output.name}: {name}, as {len(ids)} could not be prepared: "
                    f"{_few_reasons(reasons, ids)} Mend or replace some, or leave the class out."
                )


def _few_reasons(reasons: Mapping[str, str], ids: Sequence[str]) -> str:
    """Return, in words, why the first few of some cases are left out."""
    more = f"; and {len(ids) - 3} more" if len(ids) > 3 else ""
    return "; ".join(f"{name}: {reasons[name].rstrip('.')}" for name in ids[:3]) + more + "."


def standardise(output: OutputSpec, cases: Sequence[Case]) -> OutputSpec:
    """Return a regression with mean and standard deviation of the training cases; any other output as it is."""
    if output.task != "regression":
        return output
    known = known_values(cases, output)
    if not len(known):
        raise DataError(f"No training case has a value of {output.name!r}, which the model shall predict.")
    values = known.reshape(len(known), -1)
    if np.isnan(values).all(0).any():
        unknown = output.classes[int(np.isnan(values).all(0).argmax())]
        raise DataError(f"No training case has a value of {unknown!r} ({output.name}), which the model shall predict.")
    spread = np.nanstd(values, 0)
    scale = tuple(float(value) if value > 0 else 1.0 for value in spread)
    return dataclasses.replace(output, center=tuple(map(float, np.nanmean(values, 0))), scale=scale)


def input_spec(composed: Composed) -> ClipSpec:
    """Return the model's input, with the normalisation that the configuration asks for.

    Raises:
        ConfigError: another number of channels than the model's.
    """
    clip = composed.config.clip
    return input_of(composed.model, composed.config.model.config, clip.mean, clip.std)


def model_info(composed: Composed, registry: Registry, data: Data) -> ModelInfo:
    """Describe the model that a configuration and a data set call for.

    Raises:
        ConfigError: a clip size the model cannot take, or data with nothing it can predict.
        DataError: no training case has a number to predict.
    """
    config, spec = composed.config, composed.model
    if any(side % spec.clip.multiple for side in config.clip.size):
        raise ConfigError(
            f"clip.size={list(config.clip.size)} does not fit model {spec.name!r}: height and width must be "
            f"multiples of {spec.clip.multiple}."
        )
    if not spec.clip.any_frames and config.clip.frames != spec.clip.frames:
        raise ConfigError(f"clip.frames={config.clip.frames}: model {spec.name!r} takes {spec.clip.frames} frames.")
    provided = registry.find("model", config.model.name)
    preprocess = config.preprocess
    known = preprocess.name != NO_PREPROCESSOR
    chosen = {"name": registry.find("preprocessor", preprocess.name).full_name} if known else {}
    return ModelInfo(
        name=provided.full_name,
        version=provided.version,
        config=dataclasses.asdict(config.model.config),
        outputs=tuple(
            standardise(output, data.splits["train"])
            for output in usable_outputs(spec, data.index.outputs, config.outputs)
        ),
        clip=input_spec(composed),
        frames=config.clip.frames,
        size=config.clip.size,
        stride=config.clip.stride,
        padding=config.clip.padding,
        fan_crop=config.clip.fan_crop,
        blend=config.clip.blend,
        preprocess={**chosen, **dataclasses.asdict(preprocess.config)},
    )
