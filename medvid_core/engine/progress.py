"""What a person sees while a run works: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

T = TypeVar("T")


class Progress:
    """Bars and lines on standard error; silent on all but the main process."""

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled
        self.console = Console(stderr=True, quiet=not enabled, soft_wrap=True, highlight=False, markup=False)
        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=self.console,
            disable=not enabled or not sys.stderr.isatty(),
        )
        self._training: int | None = None
        self._live: Any = None

    def __enter__(self) -> Progress:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def say(self, line: str) -> None:
        """Show one line above the bars."""
        self.console.print(line)

    def start_training(self, total: int, done: int) -> None:
        """Show the bar of training steps."""
        self._training = int(self._bars.add_task("training", total=total, completed=done, note=""))

    def trained(self, step: int, loss: float) -> None:
        """Move the training bar on."""
        if self._training is not None:
            self._bars.update(self._training, completed=step, note=f"loss {loss:.4f}")  # type: ignore[arg-type]

    def live(self, line: str) -> None:
        """Show what a stream is at, in place of what was shown before."""
        if self._live is None:
            self._live = self._bars.add_task("streaming", total=None, note="")
        self._bars.update(self._live, advance=1, note=line)

    def track(self, items: Sequence[T], what: str) -> Iterator[T]:
        """Yield the items, with a bar that vanishes at the end."""
        task = self._bars.add_task(what, total=len(items), note="")
        for item in items:
            yield item
            self._bars.advance(task)
        self._bars.remove_task(task)
