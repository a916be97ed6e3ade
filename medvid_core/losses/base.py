"""What a loss is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from medvid_core.data.clip import Batch


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
