"""The training loop, readable from top to bottom.

Order, augmentation and dropout are functions of (seed, step), so a killed run goes on to the bit from its last
checkpoint, and the result does not depend on the number of loading workers.
"""

from __future__ import annotations

import contextlib
import math
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import convert_to_fp32
from torch import Tensor, nn

from medvid_core.config import Composed, OptimizerConfig, ScheduleConfig
from medvid_core.data.clip import Batch, Case
from medvid_core.data.loader import TrainingClips, default_workers, to_device, training_loader
from medvid_core.data.sampling import steps_per_epoch
from medvid_core.engine import checkpoint
from medvid_core.engine.baselines import constant_predictor, from_history
from medvid_core.engine.run import Clock, Run, now, peak_memory_mib
from medvid_core.engine.scoring import (
    CaseRow,
    own_alarms,
    problems,
    score_cases,
    set_alarms,
    summarise,
    write_tables,
)
from medvid_core.engine.session import Session, open_session
from medvid_core.errors import CheckpointError, MedvidError
from medvid_core.metrics.anomaly import alarms_of, raise_alarms
from medvid_core.models import MODEL_FILE, build_model, save_model, sha256
from medvid_core.plugins import Registry

Alarms = Mapping[str, Mapping[str, float]]
"""See `ScoredCase.alarms`."""


class StopRequest:
    """Notes Ctrl-C and SIGTERM (a cluster's scheduler), so that the loop can stop between two steps."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> StopRequest:
        self._previous = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked:  # asked twice: the user does not want to wait for the step to end
            raise KeyboardInterrupt
        self.asked = True


def learning_rate(step: int, total: int, per_epoch: int, optimizer: OptimizerConfig, schedule: ScheduleConfig) -> float:
    """Return the learning rate of a step: linear warm-up, then the course that `ScheduleConfig` names.

    With ``unit: epoch`` the cosine equals PyTorch's ``CosineAnnealingLR`` stepped once an epoch (Loshchilov & Hutter,
    ICLR 2017, equation 5, without restarts), and ``poly`` its ``PolynomialLR``; ``step`` is its ``StepLR``.
    """
    warmup = schedule.warmup_steps or round(schedule.warmup * total)
    if step < warmup:
        return optimizer.lr * (step + 1) / (warmup + 1)
    if schedule.name == "constant":
        return optimizer.lr
    if schedule.name == "step":
        return optimizer.lr * schedule.gamma ** (step // per_epoch // schedule.every)
    if schedule.unit == "epoch":
        done, whole = step // per_epoch, max(1, math.ceil(total / per_epoch))
    else:
        done, whole = step - warmup, max(1, total - warmup)
    cosine = (1 + math.cos(math.pi * done / whole)) / 2
    left = cosine if schedule.name == "cosine" else (1 - done / whole) ** schedule.power
    return schedule.final_lr + (optimizer.lr - schedule.final_lr) * left


def step_seed(seed: int, step: int, micro: int, rank: int) -> int:
    """Return the seed of everything random inside the network (dropout, drop path) in one micro-batch."""
    return int(np.random.SeedSequence([seed, step, micro, rank]).generate_state(1, np.uint64)[0] >> 1)


def train(
    composed: Composed,
    registry: Registry,
    out: Path | None = None,
    resume: Path | None = None,
    expect_processes: int | None = None,
    weights: Path | None = None,
    source: str | None = None,
) -> Run:
    """Train, evaluate and report a model.

    Args:
        composed: the configuration.
        registry: the installed plugins.
        out: the run directory to make; None for a new one under ``runs/``.
        resume: a run directory to go on with instead.
        expect_processes: refuse to start with another number of processes.
        weights: a model file whose weights training starts from.
        source: what kind of file that is, where it was published elsewhere; None: one of medvid's own.

    Returns:
        The finished run.

    Raises:
        MedvidError: the data, the configuration or a checkpoint cannot be used.
    """
    session = open_session(composed, registry, out, resume, expect_processes, weights, source)
    run, observers = session.run, session.observers
    if weights is not None:
        run.update(begun_from=start_of(weights, source))
        _save(session)  # a run killed before its first checkpoint shall start anew from these
    observers.notify("medvid_run_started", run=run)
    status = "failed"
    try:
        with StopRequest() as stop, session.progress:
            _loop(session, stop)
        with session.progress:
            _finish(session)
        status = "done"
    except KeyboardInterrupt as error:
        status = "stopped"
        raise MedvidError(
            f"Stopped at step {session.state.step}. Go on with: medvid-run train --resume {run.directory}"
        ) from error
    finally:
        run.update(status=status, finished=now(), seconds=round(session.state.seconds, 2))
        if run.main:
            observers.notify("medvid_run_ended", run=run, status=status)
    return run


def start_of(weights: Path | None, source: str | None) -> dict[str, str | None] | None:
    """Return which weights a run starts from, as its record says it (``begun_from``); None of random ones.

    Raises:
        CheckpointError: there is no such file.
    """
    if weights is None:
        return None
    if not weights.is_file():
        raise CheckpointError(f"There is no model file {weights}. Give another with --weights.")
    return {"file": weights.name, "sha256": sha256(weights), "source": source}


def _loop(session: Session, stop: StopRequest) -> None:
    """Train to the end: step, log, evaluate, save."""
    config, front, state = session.composed.config, session.accelerator, session.state
    batches = replace(session.batches, first_step=state.step)
    per_epoch, total = steps_per_epoch(batches.items, batches.batch_size), batches.last_step
    if not total:
        _keep_best(session)
        return
    clips = TrainingClips(
        session.data.splits["train"],
        session.items,
        config.clip,
        session.info.clip,
        session.steps,
        config.augment,
        config.seed,
    )
    workers = config.train.workers if config.train.workers is not None else default_workers(front.device)
    micro_batches = iter(training_loader(clips, batches, workers, pin=front.device.type == "cuda"))
    clock, before, saved_at = Clock(), state.seconds, state.seconds
    session.progress.start_training(total, state.step)
    session.model.train()
    while state.step < total and not _exhausted(session):
        lr = learning_rate(state.step, total, per_epoch, config.optimizer, config.schedule)
        values, asked = _step(session, _take(micro_batches, config.train.accumulate, front.device), lr, stop.asked)
        state.step += 1
        state.seconds = before + clock.seconds()
        epoch = (state.step - 1) // per_epoch
        session.run.log(kind="train", step=state.step, epoch=epoch, lr=lr, seconds=round(state.seconds, 3), **values)
        session.observers.notify("medvid_step_ended", run=session.run, step=state.step, values={**values, "lr": lr})
        session.progress.trained(state.step, values["loss"])
        end_of_epoch = state.step % per_epoch == 0 and (epoch + 1) % config.train.evaluate_every == 0
        if end_of_epoch or state.step == total:
            _evaluate(session)
        if end_of_epoch or state.step == total or asked or state.seconds - saved_at > config.train.save_every_s:
            _save(session)
            saved_at = state.seconds
        if asked:
            raise KeyboardInterrupt
    if state.step < total:
        session.progress.say(f"Early stop: {config.train.patience} evaluations without improvement.")


def _exhausted(session: Session) -> bool:
    """Whether the validation result has not improved for as long as the user is ready to wait."""
    patience = session.composed.config.train.patience
    return 0 < patience <= session.state.without_improvement


def _take(micro_batches: Iterator[Batch], count: int, device: torch.device) -> list[Batch]:
    return [to_device(next(micro_batches), device) for _ in range(count)]


def _step(session: Session, micro_batches: list[Batch], lr: float, stop: bool) -> tuple[dict[str, float], bool]:
    """Do one optimiser step; return the loss with its parts, and whether any process was asked to stop.

    The loss is ``Σ_part sum / count`` with counts over all processes and micro-batches, so that neither
    accumulation nor the number of processes changes it. (Batch normalisation, where a network has it, sees one
    process's micro-batch at a time.)
    """
    front, optimizer, config, state = session.accelerator, session.optimizer, session.composed.config, session.state
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
    counts, asked = _total_counts(session, micro_batches, stop)
    sums: dict[str, Tensor] = {}
    for micro, batch in enumerate(micro_batches):
        torch.manual_seed(step_seed(config.seed, state.step, micro, front.process_index))
        last = micro == len(micro_batches) - 1
        with contextlib.nullcontext() if last else front.no_sync(session.model):
            with front.autocast():
                outputs = convert_to_fp32(session.model(batch))
            parts = session.loss(outputs, batch)
            means = {name: part / counts[name].clamp(min=1) for name, part in parts.items()}
            # processes average their gradients, while the counts already span them all
            front.backward(torch.stack(list(means.values())).sum() * front.num_processes)
        for name, value in means.items():
            sums[name] = sums.get(name, torch.zeros_like(value)) + value.detach()
    values = _reduce_parts(front, sums)
    limit = config.optimizer.clip_norm or math.inf
    values["grad_norm"] = float(front.clip_grad_norm_(session.model.parameters(), limit))
    # a gradient scaler skips steps with overflowing gradients by itself
    broken = "loss" if not math.isfinite(values["loss"]) else "grad_norm"
    if not math.isfinite(values[broken]) and (broken == "loss" or front.scaler is None):
        what = "loss" if broken == "loss" else "norm of the gradient"
        cases = ", ".join(case for batch in micro_batches for case in batch["case_id"])
        raise MedvidError(
            f"The {what} is {values[broken]} at step {state.step + 1} (cases {cases}). "
            f"The last good state is in {session.run.checkpoints}. Lower optimizer.lr, set optimizer.clip_norm=1, "
            "or train in float32 (train.precision=no)."
        )
    optimizer.step()
    optimizer.zero_grad()
    if session.average is not None:
        _update_average(session.average, session.network, average_decay(config.train.ema, state.step))
    return values, asked


def _total_counts(session: Session, micro_batches: list[Batch], stop: bool) -> tuple[dict[str, Tensor], bool]:
    """Sum the counts over micro-batches and processes; the stop flag travels along, so that all stop together."""
    front = session.accelerator
    total = {"": torch.tensor(float(stop), device=front.device)}
    for batch in micro_batches:
        for name, count in session.loss.counts(batch).items():
            total[name] = total.get(name, torch.zeros_like(count, dtype=torch.float32)) + count
    reduced: dict[str, Tensor] = front.reduce(total, "sum")
    return reduced, bool(reduced.pop("") > 0)


def _reduce_parts(front: Accelerator, sums: Mapping[str, Tensor]) -> dict[str, float]:
    reduced = front.reduce(dict(sums), "sum")
    parts = {name: float(value) for name, value in reduced.items()}
    return {"loss": sum(parts.values()), **(parts if len(parts) > 1 else {})}


def average_decay(decay: float, step: int) -> float:
    """Return the decay of the moving average after ``step`` steps: less at first, or it would keep the random start.

    min(decay, (1 + step) / (10 + step)), as in TensorFlow's ``ExponentialMovingAverage`` and timm's ``ModelEmaV3``.
    """
    return min(decay, (1 + step) / (10 + step))


def _update_average(average: nn.Module, network: nn.Module, decay: float) -> None:
    """Move the average of the parameters; buffers are copied."""
    with torch.no_grad():
        for kept, new in zip(average.parameters(), network.parameters(), strict=True):
            kept.lerp_(new, 1 - decay)
        for kept_buffer, new_buffer in zip(average.buffers(), network.buffers(), strict=True):
            kept_buffer.copy_(new_buffer)


def _score(
    session: Session, model: nn.Module, cases: Sequence[Case], what: str, alarms: Alarms | None = None
) -> tuple[list[CaseRow], dict[str, float]]:
    """Score cases, with the alarm thresholds that others gave."""
    front = session.accelerator
    rows = score_cases(
        model,
        cases,
        session.scorer,
        front.process_index,
        front.num_processes,
        lambda mine: session.progress.track(mine, what),
    )
    for line in problems(rows):
        session.note(line)
    if alarms:
        set_alarms(rows, alarms)
    return rows, summarise(rows, session.scorer.metrics)


def _alarms(session: Session, model: nn.Module, what: str) -> Alarms:
    """Choose on the validation cases the scores above which an alarm is raised; nothing where none is needed."""
    cases, scorer = session.data.splits["val"], session.scorer
    if session.reported != "test" or not cases or not raise_alarms(scorer.metrics):
        return {}
    rows, _ = _score(session, model, cases, what)
    return alarms_of([row.scored for row in rows if row["scored_frames"] and row.scored], scorer.others)


def _evaluate(session: Session) -> None:
    """Score the validation cases and keep the weights if they are the best."""
    state, cases = session.state, session.data.splits["val"]
    _agree_on_buffers(session.evaluated, session.accelerator)
    if not cases:
        _keep_best(session)
        return
    rows, summary = _score(session, session.evaluated, cases, "validation")
    session.run.log(kind="evaluation", split="val", step=state.step, **summary)
    session.observers.notify("medvid_evaluated", run=session.run, step=state.step, rows=rows, summary=summary)
    name = session.scorer.metrics[0].name
    value = summary.get(name, math.nan)
    if math.isnan(value):
        session.note(
            f"{name} of the validation cases is not defined, so it cannot choose a checkpoint: the last is kept. "
            "Choose another first metric (metrics=[…]), or more validation cases (split.val)"
        )
    better = value > state.best if session.higher_is_better(name) else value < state.best
    if better or math.isnan(state.best):
        state.best, state.best_step, state.without_improvement = value, state.step, 0
        _keep_best(session)
    else:
        state.without_improvement += 1
    session.progress.say(
        f"step {state.step}: validation {name} {value:.4f} (best {state.best:.4f} at step {state.best_step})"
    )


def _agree_on_buffers(network: nn.Module, front: Accelerator) -> None:
    """Give every process the buffers of the main one, whose are saved: batch statistics differ between processes."""
    if front.num_processes > 1:
        for buffer in network.buffers():
            torch.distributed.broadcast(buffer, src=0)


def _keep_best(session: Session) -> None:
    if session.run.main:
        save_model(session.evaluated, session.run.checkpoints / "best.safetensors", base=session.base)


def _save(session: Session) -> None:
    """Write the checkpoint from which the run can go on."""
    front, state = session.accelerator, session.state
    if front.scaler is not None:
        state.scaler = front.scaler.state_dict()
    if session.run.main:
        path = session.run.checkpoints / "last.safetensors"
        checkpoint.save_training(path, session.network, session.optimizer, session.average, {**vars(state)})
        session.observers.notify("medvid_checkpoint_saved", run=session.run, path=path)


def _finish(session: Session) -> None:
    """Score the best weights on held-out cases beside the trivial predictors, and write model and report."""
    from medvid_core.report.html import write_report
    from medvid_core.report.overlay import write_overlays

    run, front, splits = session.run, session.accelerator, session.data.splits
    part = session.reported
    best = session.run.checkpoints / "best.safetensors"
    front.wait_for_everyone()
    tensors, _ = checkpoint.read(best)
    network = session.network
    network.load_state_dict(tensors, strict=session.base is None)
    if run.main:
        # first of all: whatever fails below, the model is there
        save_model(network, run.directory / MODEL_FILE, base=session.base)
    alarms = _alarms(session, network, "alarm thresholds")
    rows, summary = _score(session, network, splits[part], f"{part} cases", alarms)
    if remark := own_alarms(session.scorer.metrics, session.scorer.others, alarms, part):
        session.note(remark)
    baselines = _baselines(session, splits[part])
    session.observers.notify("medvid_evaluated", run=run, step=session.state.step, rows=rows, summary=summary)
    run.update(  # not yet done: the tables are missing, without which nothing can be compared
        split=part,
        results=summary,
        alarm_thresholds=alarms,
        baselines=baselines,
        best={"step": session.state.best_step, "value": session.state.best},
        peak_memory_mib=round(peak_memory_mib(front.device), 1),
        seconds=round(session.state.seconds, 2),
    )
    if run.main:
        run.log(kind="result", split=part, step=session.state.step, **summary)
        write_tables(run.directory, rows, session.scorer.outputs)
        write_overlays(run, network, splits[part], rows, session.scorer, session.progress)
        write_report(run.directory)
        name = session.scorer.metrics[0].name
        session.progress.say(
            f"{part} {name} {summary.get(name, math.nan):.4f}; "
            + "; ".join(f"{baseline} {values.get(name, math.nan):.4f}" for baseline, values in baselines.items())
        )
        session.progress.say(f"report   {run.directory / 'report.html'}")
    front.wait_for_everyone()


def _baselines(session: Session, cases: Sequence[Case]) -> dict[str, dict[str, float]]:
    """Score the trivial predictors any trained model must beat: an untrained network and the best constant map."""
    torch.manual_seed(session.composed.config.seed)
    device = session.accelerator.device
    untrained = build_model(session.info).to(device).eval()
    constant = constant_predictor(session.data.splits["train"], session.scorer.outputs, session.composed.config.clip)
    networks = {"untrained": untrained, "constant": constant.to(device)}
    return {
        **{name: _baseline(session, network, cases, name) for name, network in networks.items()},
        **from_history(cases, session.scorer.others, session.scorer.metrics),
    }


def _baseline(session: Session, network: nn.Module, cases: Sequence[Case], name: str) -> dict[str, float]:
    alarms = _alarms(session, network, f"alarm thresholds of the {name} baseline")
    return _score(session, network, cases, f"{name} baseline", alarms)[1]
