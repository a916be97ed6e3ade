"""Every error medvid raises on purpose. The command shows their text and exits with 2, without a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MedvidError(Exception):
    """Something the user can mend: the text says what was wrong, where, and what to do."""


class ConfigError(MedvidError):
    """A configuration value or key that cannot be used."""


class DataError(MedvidError):
    """A file, folder or table that cannot be read as what it should be."""


class CacheError(MedvidError):
    """A folder of kept results that cannot be used: no fault of the data."""


class PluginError(MedvidError):
    """A plugin that failed to load, or a name that no plugin offers."""


class CheckpointError(MedvidError):
    """A model file or training checkpoint that cannot be used."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `` Did you mean 'x'?`` for the closest known name, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean {close[0]!r}?" if close else ""
