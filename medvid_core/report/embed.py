"""Overlay videos and stills inside the page."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from medvid_core.report.palette import foreground, palette, to_hex
from medvid_core.report.rundata import RunData, as_float
from medvid_core.report.text import counted, esc, metric_name, number, section, tag

BUDGET = 3_000_000
"""Bytes of videos and stills in the page, before base64 makes four of three: the page stays below 5 MB."""
_STILL_QUALITY = 80


class _Room:
    """What is left of the budget."""

    def __init__(self, size: int) -> None:
        self.left = size

    def data_uri(self, content: bytes, kind: str) -> str:
        """Return the content as ``data:`` address, empty where it does not fit."""
        if not content or len(content) > self.left:
            return ""
        self.left -= len(content)
        return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def overlays_section(run: RunData) -> str:
    """Return the best and worst cases as looping videos and stills, with a legend."""
    room = _Room(BUDGET)
    stills = [room.data_uri(_as_webp(_inside(run, entry, "still")), "image/webp") for entry in run.overlays]
    videos = [room.data_uri(_read(_inside(run, entry, "video")), "video/webm") for entry in run.overlays]
    shown = zip(run.overlays, videos, stills, strict=True)
    figures = "".join(_figure(entry, video, still, len(run.scored)) for entry, video, still in shown)
    if not figures:
        return ""
    count = len(run.scored)
    lead = f"Chosen by {run.order} from {counted(count, 'case')}." if count > 1 else ""
    with_masks = any(not _captioned(entry) for entry in run.overlays)
    words = legend(run) if with_masks else ""
    return section("What it looks like", words, tag("div", figures, class_="cases"), lead=lead)


def legend(run: RunData) -> str:
    """Return which colour is which class of a mask, and how prediction and annotation differ; empty without masks."""
    classes = run.mask_classes
    if not run.has_masks:
        return ""
    colours = palette(len(classes))
    chips = []
    for value, label in foreground(classes).items() if classes else ():
        colour = to_hex(colours[value])
        chips.append(tag("li", f'<i style="border-color:{colour};background:{colour}66"></i>{esc(label)}, predicted'))
    chips.append(tag("li", '<i class="dash"></i>annotation, dashed contour'))
    return tag("ul", "".join(chips), class_="legend")


def _captioned(entry: Mapping[str, Any]) -> bool:
    """Whether a video shows captions, not masks."""
    return entry.get("shows") == "captions"


def _inside(run: RunData, entry: Mapping[str, Any], key: str) -> Path | None:
    """Return the path of an overlay; only plain names inside ``overlays/`` count."""
    name = entry.get(key)
    if not isinstance(name, str) or Path(name).name != name:
        return None
    path = run.directory / "overlays" / name
    return path if path.is_file() else None


def _read(path: Path | None) -> bytes:
    return path.read_bytes() if path else b""


def _as_webp(path: Path | None) -> bytes:
    """Return a still as WebP: a fifth of the PNG's size; empty if it cannot be read."""
    if path is None:
        return b""
    buffer = io.BytesIO()
    try:
        with Image.open(path) as image:
            image.convert("RGB").save(buffer, "WEBP", quality=_STILL_QUALITY)
    except (OSError, ValueError):
        return b""
    return buffer.getvalue()


def _figure(entry: Mapping[str, Any], video: str, still: str, cases: int) -> str:
    """Return one case: caption, video, stills, and what part of the clip is shown."""
    case_id, kind = str(entry.get("case_id", "")), str(entry.get("kind", ""))
    badge = tag("span", esc(kind), class_=f"kind {'good' if kind == 'best' else 'bad'}") if cases > 1 else ""
    caption = tag("figcaption", tag("h3", badge + esc(case_id)) + tag("span", esc(_value(entry))))
    media = ""
    what = "Video, with what is predicted above it, of" if _captioned(entry) else "Prediction and annotation over"
    if video:
        media += (
            f'<video autoplay loop muted playsinline controls src="{video}" '
            f'aria-label="{esc(f"{what} {case_id}")}"></video>'
        )
    if still:
        below = "what is predicted of them below" if _captioned(entry) else "image above, overlay below"
        media += f'<img src="{still}" alt="{esc(f"Frames of {case_id}: {below}")}">'
    if not media:
        reason = entry.get("problem") or "its files are missing or too large to embed; see the folder overlays"
        media = tag("p", esc(f"Not shown: {reason}"))
    return tag("figure", caption + tag("div", media, class_="media") + tag("small", esc(_extent(entry))))


def _value(entry: Mapping[str, Any]) -> str:
    """Return the value a case was chosen by, where it has one, and what is predicted of the whole case."""
    value, words = as_float(entry.get("value")), entry.get("words")
    said = [str(word) for word in words] if isinstance(words, list) else []
    metric = metric_name(str(entry.get("metric", "")))
    return " · ".join([*said, *([] if math.isnan(value) and _captioned(entry) else [f"{metric} {number(value)}"])])


def _extent(entry: Mapping[str, Any]) -> str:
    """Say which frames are shown, and how fast."""
    frames, shown, first = (int(as_float(entry.get(key, 0)) or 0) for key in ("frames", "frames_shown", "first_frame"))
    if not shown:
        return ""
    part = "all" if shown == frames else f"frames {first} to {first + shown - 1} of"
    text = f"{part} {counted(frames, 'frame')}"
    fps, fps_shown = as_float(entry.get("fps")), as_float(entry.get("fps_shown"))
    speed = "frame rate unknown, " if fps != fps else "" if fps == fps_shown else f"recorded at {fps:.3g}, "
    return f"{text}; {speed}shown at {fps_shown:.3g} frames a second"
