"""Derive the streams a model needs and the data lack: for each clip (steps), or once for each video (preparation)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medvid_core.config import NO_PREPROCESSOR, Chosen
from medvid_core.data.clip import Case, Sample
from medvid_core.data.stages import Stage, all_ready, wanted
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


@dataclass(frozen=True)
class Preparation:
    """A chosen preprocessor, ready to take whole videos through its stages.

    Attributes:
        name: full name, ``distribution/name``.
        settings: its configuration, as plain data.
        version: of the preprocessor and of what it makes.
        stages: those that the model's streams call for, in order.
    """

    name: str
    settings: Mapping[str, Any]
    version: str
    stages: tuple[Stage, ...]

    @property
    def provides(self) -> tuple[str, ...]:
        """Streams that every prepared case has."""
        return tuple(dict.fromkeys(name for stage in self.stages for name in stage.provides))

    def to_dict(self) -> dict[str, Any]:
        """Return name and settings, as the header of a model file holds them."""
        return {"name": self.name, **self.settings}


def plan_preparation(registry: Registry, chosen: Chosen, streams: Sequence[str]) -> Preparation | None:
    """Return the preparation that a configuration chose; None for none.

    Args:
        registry: the installed plugins.
        chosen: the preprocessor and its configuration.
        streams: what the model reads.

    Raises:
        PluginError: no plugin offers it. ConfigError: it has no stages, or something they need is not at hand.
    """
    if chosen.name == NO_PREPROCESSOR:
        return None
    provided = registry.find("preprocessor", chosen.name)
    spec = provided.spec
    assert isinstance(spec, PreprocessorSpec)
    stages = resolve(spec.stages)(chosen.config)
    return Preparation(
        name=provided.full_name,
        settings=dataclasses.asdict(chosen.config),
        version=f"{provided.full_name} {spec.version}",
        stages=all_ready(wanted(stages, ("video", *streams))),
    )


def streams_at_hand(preparation: Preparation | None, cases: Iterable[Case]) -> set[str]:
    """Return the streams that all cases have once they are prepared."""
    if preparation is not None:
        return set(preparation.provides)
    found = [set(case.streams) for case in cases]
    return set.intersection(*found) if found else set()


def plan_steps(registry: Registry, needed: Sequence[str], available: Iterable[str] = ()) -> list[Step]:
    """Return the preprocessors that together provide the needed streams of each clip, in order.

    Args:
        registry: the installed plugins.
        needed: what the model reads.
        available: streams that every case has beside `LOADED_STREAMS`.

    Raises:
        ConfigError: no installed preprocessor provides a stream, several do, or they depend on one another in a circle.
    """
    steps: list[Step] = []
    have = {*LOADED_STREAMS, *available}

    def provide(stream: str, asked: tuple[str, ...]) -> None:
        if stream in have:
            return
        able = [spec for spec in registry.specs(PreprocessorSpec) if stream in spec.provides]
        found = [spec for spec in able if spec.run]
        if not found and able and stream not in asked:
            names = " or ".join(f"preprocess={registry.name_of('preprocessor', spec)}" for spec in able)
            raise ConfigError(
                f"The model needs the stream {stream!r}, which the data lack and no chosen preprocessor makes. "
                f"Set {names}."
            )
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
