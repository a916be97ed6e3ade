"""Networks of torchvision with their published weights: from a file at hand, never downloaded, never at random."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import torch
import torchvision.models  # names are looked up there
from torch import nn

from medvid_core.errors import CheckpointError, ConfigError
from medvid_core.weights import read_state

_NO_EPSILON = ("fasterrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn")
"""Their published weights were trained with batch norms that add nothing to the variance (torchvision sets so too)."""

_WITH_AUXILIARY = ("deeplabv3_resnet50", "deeplabv3_mobilenet_v3_large")
"""Their published files hold a second head, which is of use in training only."""


@dataclass
class Published:
    """One network by name, or a method that needs none.

    Attributes:
        key: the setting that names it.
        name: the network's name in torchvision, or one of ``free``.
        free: values of the setting that need no weights.
    """

    key: str
    name: str
    free: Sequence[str]
    _built: dict[torch.device, nn.Module] = field(default_factory=dict, repr=False)

    @property
    def needed(self) -> bool:
        """Whether there is a network at all."""
        return self.name not in self.free

    @property
    def entry(self) -> Any:
        """torchvision's entry for the published weights."""
        return torchvision.models.get_model_weights(self.name).DEFAULT

    @property
    def file(self) -> str:
        """Name of the published file."""
        return PurePosixPath(urlsplit(self.entry.url).path).name

    def find(self) -> Path:
        """Return the published file.

        Raises:
            ConfigError: it is not at hand; the text names it, where to put it, and what needs none.
        """
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        found = folder / self.file
        if found.is_file():
            return found
        weights = self.entry
        raise ConfigError(
            f"preprocess.{self.key}={self.name} needs its published weights, the file {self.file} "
            f"({type(weights).__module__}.{weights}), and it is not at hand. Nothing is downloaded here: get it where "
            f"there is a network and put it into {folder} (another folder: the one that the environment variable "
            "TORCH_HOME names, below it hub/checkpoints). "
            f"Without weights: {' or '.join(f'preprocess.{self.key}={name}' for name in self.free)}."
        )

    def settings(self) -> Mapping[str, Any]:
        """Return what the network's answers depend on beside libraries: the content of the file.

        Raises:
            ConfigError: it is not at hand.
        """
        if not self.needed:
            return {}
        with open(self.find(), "rb") as file:
            return {"weights": hashlib.file_digest(file, "sha256").hexdigest()}

    def network(self, device: torch.device) -> nn.Module:
        """Return the network in evaluation mode, built once a device.

        Raises:
            ConfigError: the file is not at hand. CheckpointError: it is damaged, or does not fit.
        """
        if device not in self._built:
            path = self.find()
            state = read_state(path)
            more = {} if self.name in ("raft_large", "raft_small") else {"weights_backbone": None}
            if self.name in _WITH_AUXILIARY:
                more["aux_loss"] = True  # type: ignore[assignment]
            built: nn.Module = torchvision.models.get_model(self.name, weights=None, **more)
            for module in built.modules():
                if self.name in _NO_EPSILON and isinstance(module, nn.BatchNorm2d):
                    module.eps = 0.0
            try:
                built.load_state_dict(state)
            except RuntimeError as error:
                raise CheckpointError(f"The weights in {path} do not fit {self.name}: {error}") from error
            self._built[device] = built.to(device).eval().requires_grad_(False)
        return self._built[device]

    def class_number(self, label: str) -> int:
        """Return which of the network's classes is called so."""
        names: list[str] = self.entry.meta["categories"]
        return names.index(label)
