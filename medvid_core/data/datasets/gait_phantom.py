"""People who walk across a room, drawn on the fly (`medvid_core.data.phantoms.gait`), nothing to download."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from medvid_core.data.clip import Array, Case, Index, Source
from medvid_core.data.phantoms.gait import CLASSES, FPS, GaitPhantomConfig, Walk, draw_patient, render
from medvid_core.errors import DataError
from medvid_core.specs import OutputSpec


def index(root: Path | None, config: GaitPhantomConfig) -> Index:
    """Draw the parameters of every video; pictures are drawn when they are read. The group of a case is the patient.

    Target of a case: ``diagnosis``, 0 control, 1 deformity.

    Raises:
        DataError: if a folder was named: there is none to read.
    """
    if root is not None:
        raise DataError(
            f"The data set gait-phantom is drawn, not read: it has no use for the folder {root}. Leave it out."
        )
    config.validate()
    cases = tuple(
        _case(f"walker-{number:05d}", video, walk)
        for number in range(config.patients)
        for video, walk in enumerate(draw_patient(config, number), start=1)
    )
    return Index(cases=cases, outputs=(OutputSpec(name="diagnosis", task="classification", classes=CLASSES),))


def _case(patient: str, video: int, walk: Walk) -> Case:
    """One video of one patient."""
    assistant = "no" if walk.assistant is None else "stands" if walk.assistant.stands else "walks"
    return Case(
        case_id=f"{patient}-{video}",
        group_id=patient,
        frames=walk.frames,
        fps=FPS,
        stratum=CLASSES[walk.label],
        view="lateral",
        streams={"video": Source(reader=f"{__name__}:read_video", options=walk)},
        targets={"diagnosis": walk.label},
        metadata={
            "direction": "right" if walk.direction > 0 else "left",
            "assistant": assistant,
            "lean_deg": f"{walk.patient.style.lean_deg:.1f}",
            "cadence_steps_min": f"{120.0 / walk.cycle_s:.1f}",
            "speed_m_s": f"{walk.speed_m_s:.2f}",
        },
    )


def read_video(source: Source, frames: Sequence[int]) -> Array:
    """Draw the wanted frames, uint8 [T,H,W,3]."""
    return render(source.options, frames)
