"""Fixtures of the checks: how many threads they use, and a spawned process, as starting it takes seconds."""

from __future__ import annotations

import multiprocessing
import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pytest

RunElsewhere = Callable[..., Any]
"""``(function, *arguments) -> result``, computed in another process."""


@pytest.fixture(scope="session")
def single_thread() -> Iterator[None]:
    """Compute on one thread: tiny presets gain nothing from more, and wait for them on a busy machine."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _call(pickled: bytes) -> Any:
    function, arguments = pickle.loads(pickled)
    return function(*arguments)


@pytest.fixture(scope="session")
def spawned() -> Iterator[RunElsewhere]:
    """Call functions in a spawned worker, as a loader with workers does."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:

        def run(function: Callable[..., Any], *arguments: Any) -> Any:
            return pool.submit(_call, pickle.dumps((function, arguments))).result()

        yield run
