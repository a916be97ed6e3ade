"""What clips are cropped to, to be looked at before anything is learnt from it: a table, and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from medvid_core.data.clip import Case
from medvid_core.data.fan import fan_box, fan_mask
from medvid_core.data.readers import image_size, read_images
from medvid_core.data.transforms import Box
from medvid_core.engine.progress import Progress
from medvid_core.engine.scoring import write_rows
from medvid_core.errors import DataError
from medvid_core.report.draw import Bytes, font, resize_image
from medvid_core.report.text import shortened

SHOWN = 24
"""Cases in the picture, the first ones."""

TABLE, PICTURE = "crops.csv", "crops.png"
_COLUMNS = 6
_CELL = 240, 200  # width and height of a case in the picture, in pixels
_GAP = 4  # pixels between cases
_LABEL = 20  # pixels above a case
_LINE = (255, 200, 0)


def write_crops(folder: Path, cases: Sequence[Case], how: str, progress: Progress) -> None:
    """Write ``crops.csv``, a row a case, and ``crops.png``, the middle frame of the first cases with what is kept.

    A case that cannot be read, or whose fan mask does not fit, has the reason under ``problem`` and no box.

    Args:
        folder: where to.
        cases: the videos.
        how: ``clip.fan_crop``; with ``none``, nothing is written.
        progress: shows a bar.
    """
    if how == "none":
        return
    rows: list[dict[str, Any]] = []
    shown: list[Image.Image] = []
    for case in progress.track(cases, "cropping"):
        try:
            box = fan_box(case, how)
            size = image_size(case.streams["video"])
            frames = read_images(case.streams["video"], [case.frames // 2]) if len(shown) < SHOWN else ()
        except DataError as error:  # a corrupt file costs its case, not the run
            rows.append({"case_id": case.case_id, "problem": str(error)})
            continue
        assert box is not None  # something is cropped
        found = "mask" if how != "estimate" and fan_mask(case) else "estimate"
        sides = {"source_height": size[0], "source_width": size[1]}
        rows.append({"case_id": case.case_id, "problem": "", "how": found, **box._asdict(), **sides})
        shown += [_cell(frame, box, case.case_id) for frame in frames]
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(folder / TABLE, rows)
    if shown:
        _sheet(shown).save(folder / PICTURE)
    progress.say(f"crop     {how}: look at {folder / (PICTURE if shown else TABLE)}")


def _cell(image: Bytes, box: Box, name: str) -> Image.Image:
    """A frame uint8 [H,W,3] below the name of its case, what is kept of it framed and the rest darkened."""
    bottom, right = box.top + box.height, box.left + box.width
    marked = image // 3
    marked[box.top : bottom, box.left : right] = image[box.top : bottom, box.left : right]
    height, width = image.shape[:2]
    scale = min(_CELL[0] / width, (_CELL[1] - _LABEL) / height)
    small = resize_image(marked, (max(1, int(scale * height)), max(1, int(scale * width))))
    cell = Image.new("RGB", _CELL)
    cell.paste(Image.fromarray(small), (0, _LABEL))
    pen = ImageDraw.Draw(cell)
    pen.text((2, 2), shortened(name, 28), fill=(255, 255, 255), font=font(13))
    edges = scale * box.left, _LABEL + scale * box.top, scale * right - 1, _LABEL + scale * bottom - 1
    pen.rectangle([round(edge) for edge in edges], outline=_LINE)
    return cell


def _sheet(cells: Sequence[Image.Image]) -> Image.Image:
    """The cells in rows."""
    columns = min(_COLUMNS, len(cells))
    across, down = _CELL[0] + _GAP, _CELL[1] + _GAP
    sheet = Image.new("RGB", (columns * across, -(-len(cells) // columns) * down))
    for number, cell in enumerate(cells):
        sheet.paste(cell, (number % columns * across, number // columns * down))
    return sheet
