"""What a loss is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from medvid_core.errors import ConfigError
from medvid_core.specs import OutputSpec

if TYPE_CHECKING:
    from torch import Tensor, nn

    from medvid_core.data.clip import Batch, Case


class Loss(Protocol):
    """A loss as sums and counts, so that it is exact over processes and accumulation steps.

    The engine computes ``Σ_part sum / count``, with the counts summed over all processes and accumulation steps
    before the backward pass; a part with count 0 is zero. That is why counts may depend on the batch alone.
    """

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Return what each part is averaged over (pixels, frames, clips), as scalar tensors."""
        ...

    def __call__(self, outputs: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return the sum of each part, weights folded in, as differentiable scalar tensors."""
        ...


@runtime_checkable
class ChecksTraining(Protocol):
    """What a loss may have besides: whoever has this method is asked once, before training begins."""

    def check_training(self, model: nn.Module, cases: Sequence[Case]) -> Sequence[str]:
        """Refuse what the loss cannot learn with, rather than let a run end with nothing learnt.

        Args:
            model: the network as built.
            cases: the training cases.

        Returns:
            What the user should know of, a line each: shown, and kept in the run's record.

        Raises:
            ConfigError: the network gives something else than the loss takes.
            DataError: the cases hold nothing to learn from.
        """
        ...


def segmentation_output(outputs: tuple[OutputSpec, ...]) -> OutputSpec:
    """Return the one segmentation output.

    Raises:
        ConfigError: there is none, or more than one.
    """
    found = [output for output in outputs if output.task == "segmentation"]
    if len(found) != 1:
        raise ConfigError(f"This loss needs one segmentation output; the data set has {len(found)}.")
    return found[0]
