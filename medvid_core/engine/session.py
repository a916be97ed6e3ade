"""Build everything the training loop works with, and write the first record."""

from __future__ import annotations

import copy
import dataclasses
import fnmatch
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, broadcast_object_list
from torch import nn

from medvid_core.config import Composed, OptimizerConfig
from medvid_core.data.clip import Case, Index
from medvid_core.data.fan import check_fans
from medvid_core.data.folds import read_folds
from medvid_core.data.preprocess import Step, plan_steps, streams_at_hand
from medvid_core.data.sampling import ClipItem, RankBatches, limited, steps_per_epoch, training_items
from medvid_core.data.splits import STRADDLING, straddles
from medvid_core.engine import checkpoint
from medvid_core.engine.prepare import plan_for, prepare_index
from medvid_core.engine.progress import Progress
from medvid_core.engine.run import (
    Run,
    command,
    environment,
    fingerprint,
    header_lines,
    new_directory,
    now,
    read_json,
    write_json,
    write_text,
)
from medvid_core.engine.scoring import Scorer, build_metrics, check_prompt, metric_names
from medvid_core.engine.setup import Data, accelerator, check_processes, model_info, open_data, scan_choice
from medvid_core.engine.trackers import build_trackers, require_installed
from medvid_core.errors import CheckpointError, ConfigError, DataError, did_you_mean
from medvid_core.losses.base import ChecksTraining, Loss
from medvid_core.metrics.base import CaseMetric, Metric
from medvid_core.models import (
    Base,
    ModelInfo,
    build_model,
    check_tasks,
    describe,
    import_weights,
    load_model,
    sha256,
)
from medvid_core.plugins import Observers, Registry
from medvid_core.specs import MetricSpec, ModelSpec, resolve
from medvid_core.weights import ImportReport, normalised_as


@dataclass
class State:
    """The plain values of a training checkpoint."""

    step: int = 0
    best: float = math.nan
    best_step: int = 0
    without_improvement: int = 0
    seconds: float = 0.0
    scaler: dict[str, Any] = field(default_factory=dict)


@dataclass
class Session:
    """Everything the loop works with."""

    composed: Composed
    registry: Registry
    accelerator: Accelerator
    run: Run
    data: Data
    items: Sequence[ClipItem]
    batches: RankBatches
    model: nn.Module
    info: ModelInfo
    average: nn.Module | None
    optimizer: torch.optim.Optimizer
    loss: Loss
    scorer: Scorer
    observers: Observers
    progress: Progress
    steps: Sequence[Step]
    scan: dict[str, str] | None
    base: Base | None
    prepared: Mapping[str, Any]
    state: State = field(default_factory=State)

    @property
    def network(self) -> nn.Module:
        """The network itself, without the wrapper that synchronises processes."""
        module: nn.Module = self.accelerator.unwrap_model(self.model)
        return module

    @property
    def evaluated(self) -> nn.Module:
        """The network that is evaluated and kept: the moving average where there is one."""
        return self.network if self.average is None else self.average

    @property
    def reported(self) -> str:
        """The part whose cases are scored at the end."""
        return next(part for part in ("test", "val", "train") if self.data.splits[part])

    def note(self, line: str) -> None:
        """Say a line once, and keep it in the record."""
        notes = self.run.record["notes"]
        if line not in notes:
            self.progress.say(line)
            self.run.update(notes=[*notes, line])

    def higher_is_better(self, metric: str) -> bool:
        """Whether larger values of a metric are better."""
        built = [built.name for built in self.scorer.metrics]
        names = metric_names(self.composed.config.metrics, self.scorer.outputs)
        spec = self.registry.find("metric", names[built.index(metric)]).spec
        assert isinstance(spec, MetricSpec)
        return spec.higher_is_better


def build_optimizer(config: OptimizerConfig, model: nn.Module) -> torch.optim.Optimizer:
    """Build the optimiser over the parameters that are trained, grouped by decay and factor of the learning rate.

    A group's ``lr_scale`` is its factor; the training loop multiplies the rate of each step with it.

    Raises:
        ConfigError: ``optimizer.lr_scale`` names parameters that are not there, or not trained; or the optimiser's
            library is not installed.
    """
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    for pattern in config.lr_scale:
        if not any(_fits(name, pattern) for name in trained):
            roots = list(dict.fromkeys(".".join(name.split(".")[:2]) for name in trained))
            raise ConfigError(
                f"optimizer.lr_scale names {pattern!r}, which fits no trained parameter."
                f"{did_you_mean(pattern, [*roots, *trained])} Their names begin: {', '.join(roots)}."
            )
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in trained.items():
        factor = config.lr_scale.get(max((p for p in config.lr_scale if _fits(name, p)), key=len, default=""), 1.0)
        # the attribute is mamba-ssm's: it marks what shall not decay whatever its shape
        decays = config.decay == "all" or (parameter.ndim > 1 and not getattr(parameter, "_no_weight_decay", False))
        groups.setdefault((factor, config.weight_decay if decays else 0.0), []).append(parameter)
    described = [
        {"params": parameters, "lr_scale": factor, "weight_decay": decay}
        for (factor, decay), parameters in groups.items()
    ]
    if config.name == "madgrad":
        try:
            from timm.optim.madgrad import MADGRAD
        except ImportError as error:
            raise ConfigError("optimizer.name=madgrad needs the timm library: pip install timm.") from error
        madgrad: torch.optim.Optimizer = MADGRAD(described, lr=config.lr, momentum=config.momentum)
        return madgrad
    if config.name == "sgd":
        return torch.optim.SGD(described, lr=config.lr, momentum=config.momentum)
    kind = torch.optim.Adam if config.name == "adam" else torch.optim.AdamW
    return kind(described, lr=config.lr, betas=config.betas)


def _fits(name: str, pattern: str) -> bool:
    """Whether a parameter lies in the module a pattern names, or the pattern (``*``, ``?``) fits all of its name."""
    return f"{name}.".startswith(f"{pattern.rstrip('.')}.") or fnmatch.fnmatchcase(name, pattern)


def freeze(model: nn.Module, spec: ModelSpec, choice: str) -> None:
    """Leave only the parameters of the named choice trainable.

    Raises:
        ConfigError: the model has no such choice.
    """
    if choice == "all":
        return
    if choice not in spec.trainable:
        known = ["all", *spec.trainable]
        raise ConfigError(
            f"train.trainable={choice!r}: model {spec.name!r} has no such choice.{did_you_mean(choice, known)} "
            f"Known: {', '.join(known)}."
        )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(_fits(name, pattern) for pattern in spec.trainable[choice]))


def open_session(
    composed: Composed,
    registry: Registry,
    out: Path | None,
    resume: Path | None,
    expect_processes: int | None,
    weights: Path | None,
    source: str | None = None,
) -> Session:
    """Build everything the loop needs, and write the first record."""
    config = composed.config
    front = accelerator(config.train.precision)
    check_processes(front.num_processes, expect_processes)
    require_installed(config.train.trackers)
    data = open_data(composed)
    check_fans([case for cases in data.splits.values() for case in cases], config.clip.fan_crop)
    info = model_info(composed, registry, data)
    preparation = plan_for(info, registry)
    steps = plan_steps(registry, info.clip.streams, streams_at_hand(preparation, data.index.cases))
    progress = Progress(enabled=front.is_main_process)

    directory = resume or _agree_on_directory(front, out, composed)
    built = _build(composed, registry, front, info, weights, source, resume)
    prepared: Mapping[str, Any] = {}
    if preparation is not None:  # this may take hours: what can be refused without it has been
        index, found = prepare_index(data.index, composed, preparation, front, progress)
        data = open_data(composed, index, found.cases, _recorded_parts(resume, index))
        prepared = found.record
        if model_info(composed, registry, data).outputs != info.outputs:  # numbers are standardised by training cases
            built = _build(composed, registry, front, model_info(composed, registry, data), weights, source, resume)
    model, info, begun, base, scan, average, optimizer, loss, metrics = built
    notes = _frozen_at_random(model) if weights is None and resume is None else []
    if data.fallen:
        notes.append(
            f"{len(data.fallen)} case(s) of the parts that were given cannot be prepared; the parts stay as they are, "
            f"without them: {', '.join(data.fallen[:5])}{', …' if len(data.fallen) > 5 else ''}"
        )
    if isinstance(loss, ChecksTraining):
        notes += loss.check_training(model, data.splits["train"])
    scorer = Scorer(info.outputs, metrics, config.clip, info.clip, steps, config.evaluate, front.device)
    items = training_items(data.splits["train"], config.clip, info.outputs)
    numerosity = limited(items, data.splits["train"], config.clip) if config.clip.max_numerosity else None
    clips = len(items if numerosity is None else numerosity)
    total = config.train.epochs * steps_per_epoch(clips, config.train.batch_size)
    batches = RankBatches(
        seed=config.seed,
        items=clips,
        batch_size=config.train.batch_size,
        accumulate=config.train.accumulate,
        rank=front.process_index,
        processes=front.num_processes,
        first_step=0,
        last_step=total if config.train.max_steps is None else min(total, config.train.max_steps),
        numerosity=numerosity,
    )
    # everything that can be refused is refused by now: a retry with the same --out finds no half-made run
    run = Run(directory, main=front.is_main_process)
    session = Session(
        composed=composed,
        registry=registry,
        accelerator=front,
        run=run,
        data=data,
        items=items,
        batches=batches,
        model=model,
        info=info,
        average=average,
        optimizer=optimizer,
        loss=loss,
        scorer=scorer,
        observers=Observers(registry, build_trackers(config), enabled=front.is_main_process),
        progress=progress,
        steps=steps,
        prepared=prepared,
        scan=scan,
        base=base,
    )
    if resume is not None:
        _load_state(session)
    _write_start(session)
    if begun is not None:
        session.progress.say(begun.text())
    if base is not None:
        run.update(base=dataclasses.asdict(base))
    for line in notes:
        session.note(line)
    front.ddp_handler = DistributedDataParallelKwargs(find_unused_parameters=_has_unused(model, composed.model))
    session.model, session.optimizer = front.prepare(model, optimizer)
    # prepare() makes the network itself run in mixed precision; only training shall, so that scores are float32 ones
    front.unwrap_model(session.model, keep_fp32_wrapper=False)
    if session.state.scaler and front.scaler is not None:
        front.scaler.load_state_dict(session.state.scaler)
    return session


class _Built(NamedTuple):
    """What a model and its settings make, whatever the videos hold."""

    model: nn.Module
    info: ModelInfo
    begun: ImportReport | None
    base: Base | None
    scan: dict[str, str] | None
    average: nn.Module | None
    optimizer: torch.optim.Optimizer
    loss: Loss
    metrics: tuple[Metric | CaseMetric, ...]


def _build(
    composed: Composed,
    registry: Registry,
    front: Accelerator,
    info: ModelInfo,
    weights: Path | None,
    source: str | None,
    resume: Path | None,
) -> _Built:
    """Build the model and what belongs to it."""
    config = composed.config
    torch.manual_seed(config.seed)
    model = build_model(info)
    begun = None if weights is None else _start_from(model, weights, source)
    if describe(model).clip != info.clip:  # the weights bring the normalisation they were trained with
        info = describe(model)
        config.clip.mean, config.clip.std = info.clip.mean, info.clip.std
    freeze(model, composed.model, config.train.trainable)
    base = _base(config.train.save, model, begun, weights, source, resume)
    scan = scan_choice(model, front.device, config.train.precision)
    average = copy.deepcopy(model).eval().requires_grad_(False).to(front.device) if config.train.ema else None
    optimizer = build_optimizer(config.optimizer, model)
    check_tasks(composed.loss, info.outputs)
    loss: Loss = resolve(composed.loss.build)(config.loss.config, info.outputs)
    metrics = build_metrics(registry, config.metrics, info.outputs)
    check_prompt(composed.model, config.evaluate)
    return _Built(model, info, begun, base, scan, average, optimizer, loss, metrics)


def _recorded_parts(resume: Path | None, index: Index) -> dict[str, Any]:
    """Return the parts of the run that is gone on with, if the data are those it began with."""
    if resume is None:
        return {}
    began = read_json(resume / "run.json").get("dataset") or {}
    return read_json(resume / "splits.json") if began.get("fingerprint") == fingerprint(index) else {}


def _has_unused(model: nn.Module, spec: ModelSpec) -> bool:
    """Whether any parameter of this very network is declared to receive no gradient; looking for such costs time."""
    names = [name for name, _ in model.named_parameters()]
    return any(fnmatch.filter(names, pattern) for pattern in spec.unused_parameters)


def _frozen_at_random(model: nn.Module) -> list[str]:
    """Say so where a part that is not trained has learnt nothing either."""
    frozen = sum(parameter.numel() for parameter in model.parameters() if not parameter.requires_grad)
    if not frozen:
        return []
    return [f"{frozen / 1e6:.2f} M parameters stay as drawn at random: give them weights with --weights and --source."]


def _start_from(model: nn.Module, weights: Path, source: str | None) -> ImportReport | None:
    """Load weights to start from; return what was loaded, where they come from elsewhere."""
    if source is not None:
        return import_weights(model, weights, source)
    tensors, header = checkpoint.read(weights)
    if "base" in header:
        tensors = load_model(weights).state_dict()
    if isinstance(header.get("model"), dict):
        theirs = ModelInfo.from_dict(header["model"]).clip
        normalised_as(model, theirs.mean, theirs.std)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise CheckpointError(f"The weights in {weights} do not fit this model: {error}") from error
    return None


def _base(
    save: str,
    model: nn.Module,
    begun: ImportReport | None,
    weights: Path | None,
    source: str | None,
    resume: Path | None,
) -> Base | None:
    """Return what the model file may leave out, as ``train.save`` asks.

    Raises:
        ConfigError: nothing may be left out: the run starts from no published weights, nothing is frozen, or what is
            frozen is not in them.
    """
    if save == "all":
        return None
    if resume is not None:
        return Base.from_dict(read_json(resume / "run.json")["base"])
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    if begun is None or weights is None or source is None or not frozen:
        raise ConfigError(
            "train.save=trained leaves out what is frozen and can be had again: start from published weights "
            "(--weights FILE --source KIND) and freeze a part of the model (train.trainable)."
        )
    if lost := sorted(frozen - set(begun.loaded)):
        raise ConfigError(
            f"train.save=trained would lose {len(lost)} frozen parameters that {weights} does not hold: "
            f"{', '.join(lost[:5])}{', …' if len(lost) > 5 else ''}. Set train.save=all."
        )
    return Base(
        file=weights.name,
        sha256=sha256(weights),
        source=source,
        entries=tuple(sorted(frozen)),
        folder=str(weights.resolve().parent),
    )


def _agree_on_directory(front: Accelerator, out: Path | None, composed: Composed) -> Path:
    """Let the main process choose the run directory for all: alone, each would see the others' traces.

    Raises:
        DataError: on every process, if the directory already holds a run.
    """
    answer: list[Path | DataError | None] = [None]
    if front.is_main_process:
        try:
            answer[0] = new_directory(out, composed.model.name, composed.dataset.name)
        except DataError as error:
            answer[0] = error
    if front.num_processes > 1:
        broadcast_object_list(answer)
    if isinstance(answer[0], DataError):
        raise answer[0]
    assert answer[0] is not None
    return answer[0]


def _load_state(session: Session) -> None:
    run = session.run
    path = run.checkpoints / "last.safetensors"
    run.record = read_json(run.directory / "run.json")
    processes = session.accelerator.num_processes
    before = run.record.get("hardware", {}).get("processes", processes)
    if before != processes:
        session.progress.say(f"The run had {before} process(es) and goes on with {processes}: equal, not to the bit.")
    divided = {part: [case.case_id for case in cases] for part, cases in session.data.splits.items()}
    recorded = {
        part: [name for name in names if name not in session.data.fallen]
        for part, names in read_json(run.directory / "splits.json").items()
    }
    if recorded not in ({}, divided):
        raise DataError(
            f"The data at {session.composed.config.data_root or '(generated)'} are divided otherwise than when "
            f"{run.directory} began: cases were added, removed or renamed, and test cases may have been trained on. "
            "Restore the data, or start a new run (--weights takes over what was learnt)."
        )
    if not path.exists():
        run.forget_after(0)
        return  # killed before its first checkpoint: it starts anew, to the same end
    values = checkpoint.load_training(path, session.model, session.optimizer, session.average)
    try:
        session.state = State(**values)
    except TypeError as error:
        raise CheckpointError(f"{path} is damaged or of another version: {error}.") from error
    run.forget_after(session.state.step)


def _write_start(session: Session) -> None:
    """Write configuration, splits, crops and the record, and show the header."""
    from medvid_core.report.crops import SHOWN, TABLE, write_crops

    run, config, data = session.run, session.composed.config, session.data
    if run.main:
        run.checkpoints.mkdir(parents=True, exist_ok=True)
        write_text(run.directory / "config.yaml", config.to_yaml())
        write_json(
            run.directory / "splits.json",
            {part: [case.case_id for case in cases] for part, cases in data.splits.items()},
        )
        if not (run.directory / TABLE).is_file():
            # the other processes wait: only what is seen at once; an evaluation writes the boxes of all cases
            first = [case for cases in data.splits.values() for case in cases][:SHOWN]
            write_crops(run.directory, first, config.clip.fan_crop, session.progress)
    parameters = list(session.model.parameters())
    run.update(
        status="running",
        directory=str(run.directory),
        preset=config.preset,
        seed=config.seed,
        precision=config.train.precision,
        started=run.record.get("started", now()),
        model={
            "name": session.info.name,
            "version": session.info.version,
            "parameters": sum(p.numel() for p in parameters),
            "trained_parameters": sum(p.numel() for p in parameters if p.requires_grad),
            "trainable": session.composed.config.train.trainable,
        },
        dataset={
            "name": config.dataset.name,
            "root": config.data_root,
            "cases": {part: len(cases) for part, cases in data.splits.items()},
            "classes": list(session.info.outputs[0].classes),
            "outputs": [dataclasses.asdict(output) for output in session.info.outputs],
            "skipped": dict(data.index.skipped),
            "fingerprint": fingerprint(data.index),
        },
        scan=session.scan,
        preprocess=session.prepared,
        metrics={metric.name: session.higher_is_better(metric.name) for metric in session.scorer.metrics},
        **environment(session.registry, session.accelerator.device, session.accelerator.num_processes),
        # a resumed run keeps how it was begun
        command=run.record.get("command", command()),
        origins=run.record.get("origins", session.composed.origins),
        notes=run.record.get("notes", _notes(session)),
    )
    for line in header_lines(run.record):
        session.progress.say(line)
    if session.state.step:
        session.progress.say(f"resumes  at step {session.state.step}")


def _notes(session: Session) -> list[str]:
    """Return what the user should know before the run starts."""
    composed, splits = session.composed, session.data.splits
    notes = [str(problem) for problem in session.registry.problems]
    if composed.origins["preset"] == "default" and composed.config.preset == "small":
        notes.append(
            "no --data was given: this is the embedded phantom with preset=small. "
            "Full size: preset=full; your own data: --data FOLDER"
        )
    if not splits["val"]:
        notes.append("no validation cases: the last weights are kept, not the best")
    if session.reported != "test":
        notes.append(f"no test cases: the result is that of the {session.reported} cases, and too good")
    if straddles(splits):
        notes.append(STRADDLING)
    file, skipped = composed.config.split.file, session.data.index.skipped
    unused = read_folds(Path(file)).unused.difference(skipped) if file else frozenset()
    if apart := [case.case_id for case in session.data.index.cases if case.case_id in unused]:
        notes.append(
            f"{len(apart)} case(s) could not be prepared when the folds were made, are in none, and are not used: "
            f"{', '.join(apart[:5])}{', …' if len(apart) > 5 else ''}"
        )
    notes += _patient_notes(session.data.index.cases)
    notes += [f"left out {case}: {reason}" for case, reason in list(skipped.items())[:5]]
    if len(skipped) > 5:
        notes.append(f"… and {len(skipped) - 5} more cases left out, see run.json")
    return notes


PATIENT_COLUMNS = ("patient", "patientid", "subject", "subjectid", "participant", "participantid", "person", "personid")
"""Names, less case and separators, of a column that says whose a clip is."""


def _patient_notes(cases: Sequence[Case]) -> list[str]:
    """Return a warning where every case is a group of its own, but what is known of them names fewer patients."""
    if len({case.group_id for case in cases}) < len(cases):
        return []
    for name in dict.fromkeys(name for case in cases for name in case.metadata):
        if "".join(filter(str.isalnum, name.lower())) in PATIENT_COLUMNS:
            people = {case.metadata[name] for case in cases if case.metadata.get(name)}
            if len(people) < sum(bool(case.metadata.get(name)) for case in cases):
                return [
                    f"{name} names {len(people)} for {len(cases)} cases, which are divided one by one: the result may "
                    f"be too good. Keep the clips of each together with dataset.group_column={name}"
                ]
    return []
