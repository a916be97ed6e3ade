"""Words and numbers of the report, and the one way text gets into its HTML."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence

UNDEFINED = "–"
_NAMES = {"mae": "MAE", "auroc": "AUROC", "f-measure": "F-measure", "iou": "IoU", "lr": "learning rate"}
BASELINES = {"untrained": "untrained network", "constant": "best constant map"}


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
    shown = _NAMES.get(metric, metric.replace("_", " ").replace("-", " ").capitalize())
    return f"{shown}, {part}" if part else shown


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
