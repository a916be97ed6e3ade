"""The usual loss of every task but segmentation, and their sum over the outputs of a model.

Only what is known counts: a missing target is left out, never taken for zero.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medvid_core.data.clip import Batch, Case
from medvid_core.errors import ConfigError, DataError
from medvid_core.losses.config import ByTaskConfig
from medvid_core.losses.segmentation import at_least_float32
from medvid_core.specs import OutputSpec

TRUNCATION = 4.0
"""Jumps of a log-probability from frame to frame are penalised up to this size (Farha & Gall, CVPR 2019)."""

Known = tuple[Tensor, Tensor]
"""A target and where it is known."""


def clip_target(batch: Batch, name: str) -> Known:
    """Return a target of whole clips [B,...] and where it is known [B]; nowhere, if no clip of the batch has it."""
    if name in batch["targets"]:
        return batch["targets"][name], batch["targets_present"][name]
    nothing = batch["frame_real"].new_zeros(len(batch["frame_real"]))
    return nothing.float(), nothing


def frame_target(batch: Batch, name: str) -> Known:
    """Return a target of frames [B,T] and where it is known [B,T]."""
    real: Tensor = batch["frame_real"]
    if name in batch["frame_targets"]:
        return batch["frame_targets"][name], batch["frame_targets_present"][name] & real
    return torch.zeros_like(real, dtype=torch.float32), torch.zeros_like(real)


def standardised(values: Tensor, output: OutputSpec) -> Tensor:
    """Return numbers [B,D] of a regression in standard deviations of the training cases from their mean."""
    if not output.scale:
        return values
    return (values - values.new_tensor(output.center)) / values.new_tensor(output.scale)


def top_k_mean(scores: Tensor, real: Tensor) -> Tensor:
    """Return the mean [B] of the highest sixteenth, at least one, of the scores [B,T] of real frames.

    The video score of multiple-instance learning (Sultani et al., CVPR 2018; k = max(1, ceil(T/16)) as in Tian et al.,
    RTFM, ICCV 2021).
    """
    count = real.sum(1)
    k = ((count + 15) // 16).clamp(min=1)
    falling = scores.masked_fill(~real, -torch.inf).sort(1, descending=True).values
    chosen = torch.arange(scores.shape[1], device=scores.device) < k[:, None]
    return torch.where(chosen & falling.isfinite(), falling, 0).sum(1) / k


class ByTask:
    """For every output the loss of its task; parts are named ``<output>``, where several terms, ``<output>/<term>``.

    | task | loss |
    | --- | --- |
    | classification | cross-entropy with label smoothing |
    | multilabel | binary cross-entropy, mean over labels |
    | frame_classification | cross-entropy of each frame, plus truncated smoothing (Farha & Gall, CVPR 2019, eq. 8) |
    | regression | squared or Huber error, in standard deviations of the training cases |
    | ordinal | binary cross-entropy of every threshold (CORAL, Cao et al., 2020) |
    | anomaly | binary cross-entropy of frames where they are labelled; else of the video's score (`top_k_mean`), with |
    | | smoothness and, in abnormal videos, sparsity (Sultani et al., CVPR 2018) |
    """

    def __init__(self, config: ByTaskConfig, outputs: tuple[OutputSpec, ...]) -> None:
        self.config = config
        self.outputs = outputs
        for output in outputs:
            if config.class_weights and len(config.class_weights) != len(output.classes):
                raise ConfigError(
                    f"loss.class_weights has {len(config.class_weights)} values for the {len(output.classes)} classes "
                    f"of {output.name!r}."
                )

    def check_training(self, model: nn.Module, cases: Sequence[Case]) -> list[str]:
        """Refuse a network whose anomaly score is an error: labels would pull it where it cannot go.

        Returns:
            A line where videos are labelled abnormal as a whole and are longer than a clip: the label is taken for that
            of each clip, and many clips hold nothing abnormal.

        Raises:
            ConfigError: it is.
        """
        notes = []
        for output in self.outputs:
            if output.task == "anomaly" and scores_error(model):
                raise ConfigError(
                    f"The loss 'by-task' learns {output.name!r} from labels, and the score of this network is an "
                    "error, which it learns to make small on normal videos. Set loss=normal-only, or "
                    "model.anomaly=head where the model has it."
                )
            longest = max((case.frames for case in cases if _only_as_a_whole(case, output)), default=0)
            if output.task == "anomaly" and longest > (length := _clip_frames(model)):
                notes.append(
                    f"{output.name}: videos of up to {longest} frames are labelled as a whole, and each clip of "
                    f"{length} is taught their label, whatever it shows. "
                    "Let clip.frames times clip.stride cover a video."
                )
        return notes

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Return the number of clips, or of frames, each part is averaged over."""
        found: dict[str, Tensor] = {}
        for output in self.outputs:
            if output.task == "frame_classification":
                found[output.name] = frame_target(batch, output.name)[1].sum()
                found[f"{output.name}/smoothing"] = _neighbours(batch["frame_real"]).sum()
            elif output.task == "anomaly":
                _, labelled = frame_target(batch, output.name)
                found[output.name] = labelled.sum()
                found |= {f"{output.name}/{term}": self._weak(output, batch)[1].sum() for term in _WEAK_TERMS}
            else:
                found[output.name] = clip_target(batch, output.name)[1].sum()
        return found

    def __call__(self, outputs: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return the summed loss of every part."""
        found: dict[str, Tensor] = {}
        for output in self.outputs:
            found |= self._parts(output, at_least_float32(outputs[output.name]), batch)
        return found

    def _parts(self, output: OutputSpec, predicted: Tensor, batch: Batch) -> dict[str, Tensor]:
        if output.task == "frame_classification":
            return self._frames(output, predicted, batch)
        if output.task == "anomaly":
            return self._anomaly(output, predicted, batch)
        target, known = clip_target(batch, output.name)
        if output.task == "classification":
            each = F.cross_entropy(
                predicted,
                torch.where(known, target.long(), 0),
                self._weights(predicted),
                reduction="none",
                label_smoothing=self.config.label_smoothing,
            )
        elif output.task == "multilabel":
            wanted, there = _numbers(target, predicted)
            each = _mean_of_known(
                F.binary_cross_entropy_with_logits(
                    predicted, wanted, pos_weight=self._weights(predicted), reduction="none"
                ),
                there,
            )
        elif output.task == "ordinal":
            above = torch.arange(predicted.shape[1], device=predicted.device) < target[:, None]
            each = F.binary_cross_entropy_with_logits(predicted, above.to(predicted), reduction="none").sum(1)
        else:
            wanted, there = _numbers(target, predicted)
            ours, theirs = standardised(predicted, output), standardised(wanted, output)
            if self.config.regression == "huber":
                each = F.huber_loss(ours, theirs, reduction="none", delta=self.config.huber_delta)
            else:
                each = F.mse_loss(ours, theirs, reduction="none")
            each = _mean_of_known(each, there)
        return {output.name: torch.where(known, each, 0).sum()}

    def _weights(self, like: Tensor) -> Tensor | None:
        return like.new_tensor(self.config.class_weights) if self.config.class_weights else None

    def _frames(self, output: OutputSpec, predicted: Tensor, batch: Batch) -> dict[str, Tensor]:
        target, known = frame_target(batch, output.name)
        each = F.cross_entropy(
            predicted.flatten(0, 1), target.long().flatten(), self._weights(predicted), reduction="none"
        ).view(known.shape)
        logs = predicted.log_softmax(2)
        # the earlier of two frames is held fixed, as in the original
        jumps = (logs[:, 1:] - logs[:, :-1].detach()).abs().clamp(max=TRUNCATION).square().mean(2)
        smoothing = (jumps * _neighbours(batch["frame_real"])).sum()
        return {
            output.name: torch.where(known, each, 0).sum(),
            f"{output.name}/smoothing": self.config.smoothing * smoothing,
        }

    def _weak(self, output: OutputSpec, batch: Batch) -> Known:
        """Return the label of each video [B], and which videos have no more than that [B]."""
        target, known = clip_target(batch, output.name)
        return target.float(), known & ~frame_target(batch, output.name)[1].any(1)

    def _anomaly(self, output: OutputSpec, predicted: Tensor, batch: Batch) -> dict[str, Tensor]:
        target, known = frame_target(batch, output.name)
        each = F.binary_cross_entropy_with_logits(
            predicted, target.to(predicted), pos_weight=self._weights(predicted), reduction="none"
        )
        label, weak = self._weak(output, batch)
        real: Tensor = batch["frame_real"]
        video = F.binary_cross_entropy_with_logits(top_k_mean(predicted, real), label, reduction="none")
        scores = predicted.sigmoid() * real
        smooth = ((scores[:, 1:] - scores[:, :-1]).square() * _neighbours(real)).sum(1)
        sparse = scores.sum(1) * label
        weighted = (1.0, self.config.mil_smoothness, self.config.mil_sparsity)
        terms = zip(_WEAK_TERMS, weighted, (video, smooth, sparse), strict=True)
        return {output.name: torch.where(known, each, 0).sum()} | {
            f"{output.name}/{term}": weight * torch.where(weak, value, 0).sum() for term, weight, value in terms
        }


def _only_as_a_whole(case: Case, output: OutputSpec) -> bool:
    """Whether a video is known to be abnormal, but not where."""
    return case.targets.get(output.name) == 1 and output.name not in case.frame_targets


def _clip_frames(model: nn.Module) -> int:
    """Frames of a video that a clip spans; of a network made without medvid, as many as there are."""
    info = getattr(model, "medvid", None)
    return int(info.frames * info.stride) if info is not None else sys.maxsize


_WEAK_TERMS = ("video", "smoothness", "sparsity")


def _numbers(target: Tensor, like: Tensor) -> Known:
    """Return several numbers or labels of each clip [B,D], 0 where unknown (NaN), and where they are known [B,D]."""
    values = target.to(like).view(len(like), -1).expand_as(like)
    return values.nan_to_num(0), ~values.isnan()


def _mean_of_known(values: Tensor, known: Tensor) -> Tensor:
    """Return the mean [B] of the values [B,D] that are known; 0 where none is."""
    return (values * known).sum(1) / known.sum(1).clamp(min=1)


def _neighbours(real: Tensor) -> Tensor:
    """Return where a frame and the one before it are both real, bool [B,T-1]."""
    return real[:, 1:] & real[:, :-1]


def scores_error(model: nn.Module) -> bool:
    """Whether a network says of its anomaly score that it is an error, small where all is normal (see `ModelSpec`)."""
    return bool(getattr(model, "scores_error", False))


class NormalOnly:
    """Mean anomaly score of the frames of normal videos: for models whose score is an error they learn to make small.

    A video is left out if it, or any frame of the clip, is known to be abnormal.
    """

    def __init__(self, output: OutputSpec) -> None:
        self.name = output.name

    def check_training(self, model: nn.Module, cases: Sequence[Case]) -> list[str]:
        """Refuse a score that is no error, and would fall for ever; and training cases of which none is normal.

        Raises:
            ConfigError: the network does not say that its score is an error.
            DataError: no case is normal: there would be nothing to learn.
        """
        if not scores_error(model):
            raise ConfigError(
                "The loss 'normal-only' is for networks whose anomaly score is an error, small where all is normal; "
                "that of this one is not. Set model.anomaly=forecast where the model has it, or learn from the labels "
                "with loss=by-task."
            )
        if not any(self._may_be_normal(case) for case in cases):
            raise DataError(
                f"The loss 'normal-only' learns from normal videos, and all {len(cases)} training cases are abnormal "
                f"({self.name}). Add normal ones, or learn from the labels with loss=by-task."
            )
        return []

    def _may_be_normal(self, case: Case) -> bool:
        """Whether a case is known to be normal, or to hold a stretch that is, without being labelled abnormal."""
        frames, label = case.frame_targets.get(self.name, ()), case.targets.get(self.name)
        return label == 0 or (label is None and any(value == 0 for value in frames))

    def _frames(self, batch: Batch) -> Tensor:
        label, known = clip_target(batch, self.name)
        frames, frames_known = frame_target(batch, self.name)
        abnormal = (known & (label > 0)) | (frames_known & (frames > 0)).any(1)
        real: Tensor = batch["frame_real"]
        return real & ~abnormal[:, None]

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Return the number of normal frames."""
        return {self.name: self._frames(batch).sum()}

    def __call__(self, outputs: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return the summed score."""
        return {self.name: (at_least_float32(outputs[self.name]) * self._frames(batch)).sum()}


def build_by_task(config: ByTaskConfig, outputs: tuple[OutputSpec, ...]) -> ByTask:
    """Build the loss of every output's task."""
    return ByTask(config, outputs)


def build_normal_only(config: object, outputs: tuple[OutputSpec, ...]) -> NormalOnly:
    """Build the loss of models that learn what is normal.

    Raises:
        ConfigError: there is another output beside the anomaly score.
    """
    if len(outputs) != 1:
        raise ConfigError("The loss 'normal-only' is for one anomaly output. Choose it with outputs=[…].")
    return NormalOnly(outputs[0])
