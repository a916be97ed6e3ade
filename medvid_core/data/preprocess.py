"""Derive the streams a model needs and the data lack."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from medvid_core.data.clip import Sample
from medvid_core.errors import ConfigError
from medvid_core.plugins import Registry
from medvid_core.specs import PreprocessorSpec, resolve

LOADED_STREAMS = ("video", "mask")
"""Streams the loader itself makes."""


@dataclass(frozen=True)
class Step:
    """One preprocessor, ready to run."""

    run: Callable[[Sample, Any], Sample]
    config: Any

    def __call__(self, sample: Sample) -> Sample:
        """Return the sample with the provided streams added."""
        return self.run(sample, self.config)


def plan_steps(registry: Registry, needed: Sequence[str], available: Sequence[str] = LOADED_STREAMS) -> list[Step]:
    """Return the preprocessors that together provide the needed streams, in order.

    Raises:
        ConfigError: no installed preprocessor provides a stream, several do, or they depend on one another in a circle.
    """
    steps: list[Step] = []
    have = set(available)

    def provide(stream: str, asked: tuple[str, ...]) -> None:
        if stream in have:
            return
        found = [spec for spec in registry.specs(PreprocessorSpec) if stream in spec.provides]
        if not found or stream in asked:
            raise ConfigError(
                f"The model needs the stream {stream!r}, which the data lack and no installed preprocessor provides."
            )
        if len(found) > 1:
            raise ConfigError(
                f"The stream {stream!r} is provided by several preprocessors: {', '.join(s.name for s in found)}. "
                "Uninstall all but one."
            )
        spec = found[0]
        for required in spec.requires:
            provide(required, (*asked, stream))
        steps.append(Step(resolve(spec.run), resolve(spec.config)()))
        have.update(spec.provides)

    for stream in needed:
        provide(stream, ())
    return steps
