"""Results that took long, kept on disk under a key that says all they depend on: shared, never half made.

A result is a folder. It is made in a folder of its own and renamed when whole; a lock on its key, which the system
lifts when a process dies, keeps two processes from making it twice: the second waits and reads, or turns to something
else first. That there is no result, and why, is kept as well.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from medvid_core.errors import CacheError, ConfigError, DataError

_RECORD = "entry.json"
_YOUNG_NS = 2_000_000_000
"""A file changed so short ago may change again within one tick of its clock, unseen."""
_FULL = (errno.ENOSPC, errno.EDQUOT)


class BusyError(Exception):
    """Another process is making the result that was asked for."""


@dataclass(frozen=True)
class Entry:
    """A kept result.

    Attributes:
        folder: where its files are.
        content: what its maker returned, plain data.
        seconds: how long it took.
        computed: whether it was made just now.
        remark: what is to be said of it, e.g. that it was found damaged and made anew.
        failure: why nothing can be made of this input; empty: something was.
    """

    folder: Path
    content: Mapping[str, Any]
    seconds: float
    computed: bool = False
    remark: str = ""
    failure: str = ""


def default_root() -> Path:
    """Return the user's cache folder for prepared videos.

    Raises:
        ConfigError: there is no home.
    """
    try:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError as error:
        raise ConfigError("There is no home folder to keep prepared videos in. Name a folder: cache=DIR.") from error
    return Path(base) / "medvid" / "prepared"


def key_of(value: Any) -> str:
    """Return a hash of plain data (see `plain`): equal data, equal key, in whatever order mappings are."""
    return hashlib.sha256(json.dumps(plain(value), sort_keys=True).encode()).hexdigest()


def plain(value: Any) -> Any:
    """Return settings as JSON holds them: dataclasses with their class, arrays by their content.

    Raises:
        ConfigError: something whose content cannot be told.
    """
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {item.name: plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
        return {"class": f"{type(value).__module__}.{type(value).__qualname__}", **fields}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        return [str(value.dtype), list(value.shape), hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()]
    raise ConfigError(f"A {type(value).__name__} among settings cannot be told from another: use plain data there.")


class Cache:
    """A folder of results.

    Args:
        root: the folder; made when first written to.
        wait: whether to wait for a result that another process is making; else that is `BusyError`.
    """

    def __init__(self, root: Path, wait: bool = True) -> None:
        self.root = root
        self.wait = wait

    def folder(self, key: str) -> Path:
        """Return where the result of a key is, or would be."""
        return self.root / "entries" / key[:2] / key

    def file_hash(self, path: str | Path) -> str:
        """Return the SHA-256 of a file's content; remembered as long as size and time of change stay.

        Raises:
            DataError: it cannot be read.
        """
        try:
            status = os.stat(path)
            place = self.root / "hashes" / (hashlib.sha256(os.path.abspath(path).encode()).hexdigest()[:32] + ".json")
            known = _read(place)
            if known is not None and known.get("seen") == [status.st_size, status.st_mtime_ns]:
                return str(known["sha256"])
            with open(path, "rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            after = os.stat(path)
        except OSError as error:
            raise DataError(f"The file {path} cannot be read: {error.strerror}. Restore it.") from error
        seen = [status.st_size, status.st_mtime_ns]
        settled = time.time_ns() - status.st_mtime_ns > _YOUNG_NS
        if settled and seen == [after.st_size, after.st_mtime_ns]:
            _write(place, {"seen": seen, "sha256": found})
        return found

    def get(self, key: str, make: Callable[[Path], Mapping[str, Any]]) -> Entry:
        """Return the result of a key, made by ``make`` if there is none: it writes files into the folder it is given.

        A `DataError` of ``make`` is kept, and raised again the next time, whosever input it then is, unless something
        else caused it (its ``__cause__``), such as a file that could not be read for once.

        Raises:
            DataError: nothing can be made of this input. CacheError: the cache cannot be written to, or its disk is
                full. BusyError: another process is at it, and this shall not wait. Or whatever else ``make`` raises,
                and then nothing is kept.
        """
        entry, _ = self._load(key)
        if entry is None:
            with self._locked(key, self.wait) as mine:
                if not mine:
                    raise BusyError(key)
                entry, damage = self._load(key)
                if entry is None:
                    return self._make(key, make, damage)
        if entry.failure:
            raise DataError(entry.failure)
        return entry

    def sweep(self) -> None:
        """Remove what processes that died have left half made.

        Raises:
            CacheError: the folder cannot be read, or takes no locks.
        """
        unfinished = self.root / "unfinished"
        with self._writing():
            folders = list(unfinished.iterdir()) if unfinished.is_dir() else []
        for folder in folders:
            with self._locked(folder.name, wait=False) as mine:
                if mine:
                    shutil.rmtree(folder, ignore_errors=True)

    def _load(self, key: str) -> tuple[Entry | None, str]:
        """Return a sound result, or None and what is wrong with the one that is there."""
        folder = self.folder(key)
        if not folder.is_dir():
            return None, ""
        record = _read(folder / _RECORD)
        try:
            if record is None:
                return None, "its record cannot be read"
            for name, (size, sha256) in record["files"].items():
                if os.path.getsize(folder / name) != size or self.file_hash(folder / name) != sha256:
                    return None, f"{name} is not what was written"
            return Entry(
                folder, record["content"], float(record["seconds"]), failure=str(record.get("failure", ""))
            ), ""
        except (OSError, DataError, KeyError, TypeError, ValueError, AttributeError):
            return None, "a file is missing, or its record cannot be understood"

    def _make(self, key: str, make: Callable[[Path], Mapping[str, Any]], damage: str) -> Entry:
        """Make a result, and keep it; or keep why there is none."""
        unfinished = self.root / "unfinished" / key
        started = time.perf_counter()
        shutil.rmtree(unfinished, ignore_errors=True)
        try:
            with self._writing():
                unfinished.mkdir(parents=True)
            try:
                content = self._made(make, unfinished)
            except DataError as error:
                if error.__cause__ is None:  # else another day may bring another answer
                    shutil.rmtree(unfinished, ignore_errors=True)
                    with self._writing():
                        unfinished.mkdir(parents=True)
                    self._keep(key, {}, started, str(error))
                raise
            return self._keep(key, content, started, damage=damage)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)

    def _made(self, make: Callable[[Path], Mapping[str, Any]], folder: Path) -> Mapping[str, Any]:
        """Let a result be made; only of a full disk is it sure that the cache is at fault."""
        try:
            return make(folder)
        except OSError as error:
            if error.errno in _FULL:
                raise self._unwritable(error) from error
            raise

    def _keep(self, key: str, content: Mapping[str, Any], started: float, failure: str = "", damage: str = "") -> Entry:
        """Put what was made in its place, all at once."""
        final, unfinished = self.folder(key), self.root / "unfinished" / key
        with self._writing():
            files = {}
            for path in sorted(unfinished.iterdir()):
                _sync(path)
                with open(path, "rb") as file:
                    files[path.name] = (path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())
            seconds = round(time.perf_counter() - started, 3)
            record = {"content": plain(content), "failure": failure, "seconds": seconds, "files": files}
            (unfinished / _RECORD).write_text(json.dumps(record), "utf-8")
            _sync(unfinished / _RECORD)
            _sync(unfinished)
            shutil.rmtree(final, ignore_errors=True)
            final.parent.mkdir(parents=True, exist_ok=True)
            os.replace(unfinished, final)
            _sync(final.parent)
        remark = f"the kept result {final} was damaged ({damage}) and was made anew" if damage else ""
        return Entry(final, record["content"], seconds, computed=True, remark=remark, failure=failure)

    @contextmanager
    def _locked(self, key: str, wait: bool = True) -> Iterator[bool]:
        """Hold the lock of a key; yield whether it is held."""
        try:
            import fcntl
        except ImportError as error:
            raise ConfigError("Preparing videos needs file locks as Linux and macOS have them.") from error
        with self._lock_file(key) as file:  # its end lifts the lock
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
                mine = True
            except BlockingIOError:
                mine = False
            except OSError as error:
                raise CacheError(
                    f"The file system of the cache {self.root} takes no locks: {error}. Name a folder on another, such "
                    "as a disk of this machine: cache=DIR."
                ) from error
            yield mine

    def _lock_file(self, key: str) -> IO[bytes]:
        path = self.root / "locks" / key
        with self._writing():
            path.parent.mkdir(parents=True, exist_ok=True)
            return open(path, "ab")

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Say of a fault of the disk that it is one of the cache."""
        try:
            yield
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> CacheError:
        if error.errno in _FULL:
            return CacheError(
                f"The disk of the cache {self.root} is full: {error}. Make room, or name another: cache=DIR."
            )
        return CacheError(f"The cache {self.root} cannot be written to: {error}. Name another: cache=DIR.")


def files_key(cache: Cache, paths: Sequence[str]) -> list[str]:
    """Return the content hash of each file, in order; ``""`` for a frame without one."""
    return [cache.file_hash(path) if path else "" for path in paths]


def _read(path: Path) -> dict[str, Any] | None:
    """Return a JSON object; None where there is none that can be read."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _write(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON atomically; a cache that cannot be written to only costs time."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(content), "utf-8")
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Bring a file or folder to the disk, so that no power cut leaves a whole name on half a content."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
