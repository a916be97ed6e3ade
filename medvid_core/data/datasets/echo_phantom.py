"""The embedded default: echocardiograms drawn on the fly (`medvid_core.data.phantoms.echo`), nothing to download."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from medvid_core.data.clip import Array, Case, Index, Source
from medvid_core.data.phantoms.echo import CLASSES, EchoCase, EchoPhantomConfig, draw_case, render_case
from medvid_core.errors import DataError
from medvid_core.specs import OutputSpec


def index(root: Path | None, config: EchoPhantomConfig) -> Index:
    """Draw the parameters of every case; pictures are drawn when they are read. The group of a case is the case.

    Targets of a case: ``ejection_fraction`` in percent, ``wall_motion`` (1 = a wall moves badly).

    Raises:
        DataError: if a folder was named: there is none to read.
    """
    if root is not None:
        raise DataError(
            f"The data set echo-phantom is drawn, not read: it has no use for the folder {root}. Leave it out."
        )
    cases = tuple(_case(draw_case(config, number)) for number in range(config.cases))
    return Index(cases=cases, outputs=(OutputSpec(name="mask", task="segmentation", classes=CLASSES),))


def _case(echo: EchoCase) -> Case:
    """One drawn patient."""
    return Case(
        case_id=echo.case_id,
        group_id=echo.case_id,
        frames=echo.frames,
        fps=echo.fps,
        spacing=echo.spacing_mm,
        stratum="abnormal" if echo.abnormal else "normal",
        view="A4C",
        streams={
            "video": Source(reader=f"{__name__}:read_video", options=echo),
            "mask": Source(reader=f"{__name__}:read_mask", options=echo, values=tuple(range(len(CLASSES)))),
        },
        targets={"ejection_fraction": echo.ejection_fraction, "wall_motion": int(echo.abnormal)},
        metadata={
            "vendor": echo.vendor,
            "abnormal_wall": echo.abnormal_wall,
            "heart_rate_bpm": f"{echo.heart_rate_bpm:.1f}",
            "edv_ml": f"{echo.edv_ml:.1f}",
            "esv_ml": f"{echo.esv_ml:.1f}",
            "ed_frame": str(echo.ed_frame),
            "es_frame": str(echo.es_frame),
        },
    )


def read_video(source: Source, frames: Sequence[int]) -> Array:
    """Draw the wanted frames, uint8 [T,H,W]."""
    return render_case(source.options)[0][list(frames)]


def read_mask(source: Source, frames: Sequence[int]) -> Array:
    """Draw the masks of the wanted frames, uint8 [T,H,W]: 0 background, 1 left ventricle, 2 myocardium."""
    return render_case(source.options)[1][list(frames)]
