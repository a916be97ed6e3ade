"""Write a plugin as an installed distribution, for tests of whatever loads plugins."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from medvid_core.plugins import GROUP


def install(
    folder: Path, distribution: str, sources: Mapping[str, str], entry_points: Mapping[str, str], version: str = "1.0"
) -> Path:
    """Write modules and metadata as pip would leave them, into a folder to be put on ``sys.path``.

    Args:
        folder: where to; made if need be.
        distribution: its name, e.g. ``medvid-example``.
        sources: path → text of each file, e.g. ``{"example.py": "…"}``.
        entry_points: name → module of each plugin.
        version: its version.

    Returns:
        The folder.
    """
    for path, text in sources.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8")
    metadata = folder / f"{distribution.replace('-', '_')}-{version}.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n", "utf-8")
    lines = [f"[{GROUP}]", *(f"{name} = {module}" for name, module in entry_points.items())]
    (metadata / "entry_points.txt").write_text("\n".join(lines) + "\n", "utf-8")
    return folder
