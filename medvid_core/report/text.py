"""Words and numbers of the report, and the one way text gets into its HTML."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from importlib.resources import files

UNDEFINED = "–"
_NAMES = {
    "mae": "MAE",
    "grade-mae": "MAE in grades",
    "mae-low": "MAE, low values",
    "iou": "IoU",
    "lr": "learning rate",
    "f-measure": "F-measure",
    "r2": "R²",
    "kappa": "Kappa, quadratic weights",
    "bland-altman": "Limits of agreement, half width",
    "auroc-below": "AUROC, low values",
    "auroc-worsened": "AUROC, fallen by 10 or more",
    "c-index": "C-index of the change",
    "sensitivity-at-95-specificity": "Sensitivity at 95 % specificity",
    "hausdorff": "Hausdorff distance",
}
_CAPITALS = {
    **{"auroc": "AUROC", "ap": "AP", "rmse": "RMSE", "f1": "F1"},
    **{"hd95": "HD95", "asd": "ASD", "assd": "ASSD"},
}
_PARTS = {
    "bland-altman": {"bias": "Bias", "lower": "Limits of agreement, lower", "upper": "Limits of agreement, upper"},
    "frame-auroc": {"per-video": "Frame AUROC, mean over videos"},
    "frame-ap": {"per-video": "Frame AP, mean over videos"},
    "video-auroc": {"max": "Video AUROC, by the highest frame"},
    "video-ap": {"max": "Video AP, by the highest frame"},
    "sensitivity-at-95-specificity": {
        "specificity": "Specificity reached",
        "video": "Sensitivity at 95 % specificity, videos",
        "video-specificity": "Specificity reached, videos",
    },
    "detection-delay": {"seconds": "Detection delay, seconds", "missed": "Detection delay, share missed"},
}
_FROM_MASKS = {"ejection-fraction": "", "ejection-fraction-area-length": "by area and length"}
BASELINES = {
    "untrained": "untrained network",
    "constant": "constant prediction",
    "carry-forward": "last value carried forward",
    "trend": "straight line through earlier values",
}
"""What trivial predictors are called."""
_QUANTITIES = {"edv": "EDV", "esv": "ESV"}
_AGREEMENT = {
    "": "error",
    "rmse": "RMSE",
    "lower": "limits of agreement, lower",
    "upper": "limits of agreement, upper",
    "undefined": "share undefined",
}
NEUTRAL = ("prevalence", "bias", "lower", "upper", "correlation", "true", "predicted")
"""Parts of metrics that are neither better nor worse, or not in the direction of their metric."""


def esc(value: object) -> str:
    """Return text safe to stand in HTML, in attributes too. Everything read from a file goes through this."""
    return html.escape(str(value), quote=True)


def number(value: float, digits: int = 3) -> str:
    """Return a number as people write it in a table: fixed digits, few for large ones, ``–`` where undefined."""
    if math.isnan(value):
        return UNDEFINED
    if value and (abs(value) < 0.5 * 10**-digits or abs(value) >= 1e5):
        return f"{value:.2g}"
    return f"{value:.{digits if abs(value) < 100 else 1}f}"


def with_deviation(value: float, deviation: float) -> str:
    """Return ``mean ± sd``, without the second where it is undefined."""
    return number(value) if math.isnan(deviation) else f"{number(value)} ± {number(deviation)}"


def metric_name(name: str) -> str:
    """Return a metric's name for people: ``dice`` → ``Dice``; ``dice/lv`` → ``Dice, lv``."""
    metric, _, part = name.partition("/")
    if metric in _FROM_MASKS:
        return _from_masks(_FROM_MASKS[metric], part.split("/") if part else [])
    if part in _PARTS.get(metric, {}):
        return _PARTS[metric][part]
    if metric == "auroc-below" and part.isdigit():
        return f"AUROC, true value below {part}"
    if metric == "mae-low" and part.startswith("below-"):
        return f"MAE, true value below {part.removeprefix('below-')}"
    if metric == "segmental-f1" and part.isdigit():
        return f"Segmental F1, {part} % overlap"
    shown = _NAMES.get(metric) or _in_words(metric)
    return f"{shown}, {part.replace('/', ', ')}" if part else shown


def _from_masks(formula: str, parts: list[str]) -> str:
    """Return ``EDV, bias, biplane`` for the parts ``biplane``, ``edv``, ``bias`` of an ejection fraction from masks."""
    what = next((_QUANTITIES[part] for part in parts if part in _QUANTITIES), "EF")
    planes = ["biplane"] if "biplane" in parts else []
    rest = "".join(part for part in parts if part != "biplane" and part not in _QUANTITIES)
    said = _AGREEMENT.get(rest, rest)
    return ", ".join([f"{what} {said}" if not rest else f"{what}, {said}", *planes, *([formula] if formula else [])])


def _in_words(metric: str) -> str:
    """Return ``Balanced accuracy`` for ``balanced-accuracy``: abbreviations in capitals, words as words."""
    words = metric.replace("_", "-").split("-")
    first, *rest = [_CAPITALS.get(word, word) for word in words]
    return " ".join([first[:1].upper() + first[1:], *rest])


def shortened(text: object, most: int = 20) -> str:
    """Return a text on one line, of at most so many characters."""
    line = " ".join(str(text).split())
    return line if len(line) <= most else f"{line[: most - 1]}…"


def duration(seconds: float) -> str:
    """Return seconds in the two largest units."""
    if math.isnan(seconds):
        return UNDEFINED
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes_left = divmod(minutes, 60)
    return f"{hours} h {minutes_left} min" if hours else f"{minutes} min {rest} s"


def counted(count: int, noun: str) -> str:
    """Return ``1 case``, ``2 cases``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def joined(parts: Sequence[str]) -> str:
    """Return ``a``, ``a and b``, ``a, b and c``."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}" if parts else ""


def tag(name: str, content: str, **attributes: object) -> str:
    """Return an element; ``content`` is HTML, attribute values are escaped (``class_`` for ``class``)."""
    described = "".join(f' {key.rstrip("_").replace("_", "-")}="{esc(value)}"' for key, value in attributes.items())
    return f"<{name}{described}>{content}</{name}>"


def section(title: str, *content: str, lead: str = "") -> str:
    """Return a titled section; empty without content. Title and lead are text."""
    inner = "\n".join(part for part in content if part)
    if not inner:
        return ""
    return tag("section", tag("h2", esc(title)) + (tag("p", esc(lead), class_="lead") if lead else "") + inner)


def details(title: str, content: str) -> str:
    """Return a block that opens on a click; empty without content."""
    return tag("details", tag("summary", esc(title)) + content) if content else ""


def facts(pairs: Iterable[tuple[str, object]]) -> str:
    """Return a list of names and values, both text; pairs with an empty value are left out."""
    rows = [(name, value) for name, value in pairs if value not in ("", None)]
    return tag("dl", "".join(tag("dt", esc(k)) + tag("dd", esc(v)) for k, v in rows), class_="facts") if rows else ""


def table(head: Sequence[str], rows: Iterable[str], caption: str = "") -> str:
    """Return a table that scrolls sideways where it does not fit; cells and rows are HTML."""
    title = tag("caption", esc(caption)) if caption else ""
    body = tag("thead", tag("tr", "".join(head))) + tag("tbody", "\n".join(rows))
    return tag("div", tag("table", title + body), class_="scroll", tabindex=0)


_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; media-src data:"


def document(title: str, parts: Iterable[str]) -> str:
    """Return a whole page that loads and runs nothing.

    Args:
        title: of the page; it is escaped.
        parts: HTML, one after the other; empty ones are left out.
    """
    style = (files("medvid_core.report") / "style.css").read_text("utf-8")
    head = "\n".join(
        [
            '<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{esc(_POLICY)}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="robots" content="noindex">',
            tag("title", esc(title)),
            f"<style>{style}</style>",
        ]
    )
    body = tag("main", "\n".join(part for part in parts if part))
    return f'<!doctype html>\n<html lang="en">\n<head>\n{head}\n</head>\n<body>\n{body}\n</body>\n</html>\n'
