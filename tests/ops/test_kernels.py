"""The compiled kernels under circumstances: threads, forked and spawned processes, folders that cannot be written."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch import Tensor

from medvid_core.ops import selective_scan
from medvid_core.ops.lanes import share

PROGRAM = """
import torch
from medvid_core.ops import selective_scan
g = torch.Generator().manual_seed(0)
u, delta, z = (torch.randn(1, 64, 300, generator=g, requires_grad=True) for _ in range(3))
B, C = (torch.randn(1, 4, 300, generator=g) for _ in range(2))
y = selective_scan(u, delta, -torch.rand(64, 4, generator=g), B, C, z=z, delta_softplus=True, backend="cpu")
(grad,) = torch.autograd.grad(y.sum(), u)
print(y.double().sum().item(), grad.double().sum().item())
"""


def answer() -> str:
    g = torch.Generator().manual_seed(0)
    u, delta, z = (torch.randn(1, 64, 300, generator=g, requires_grad=True) for _ in range(3))
    B, C = (torch.randn(1, 4, 300, generator=g) for _ in range(2))
    y = selective_scan(u, delta, -torch.rand(64, 4, generator=g), B, C, z=z, delta_softplus=True, backend="cpu")
    assert isinstance(y, Tensor)
    (grad,) = torch.autograd.grad(y.sum(), u)
    return f"{y.double().sum().item()} {grad.double().sum().item()}"


def start(cache: Path | None, **more: str) -> subprocess.Popen[str]:
    environment = {**os.environ, **more} | ({} if cache is None else {"NUMBA_CACHE_DIR": str(cache)})
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def output(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out.strip()


def test_threads_at_once() -> None:
    """Callers do not disturb one another, and each may itself use several threads."""
    wanted = answer()
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.extend(answer() for _ in range(20))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [wanted] * 80


class Scans(torch.utils.data.Dataset[str]):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> str:
        torch.set_num_threads(2)
        return answer()


@pytest.mark.parametrize(
    "method",
    ["fork", pytest.param("spawn", marks=pytest.mark.slow), pytest.param("forkserver", marks=pytest.mark.slow)],
)
def test_in_loading_workers(method: str) -> None:
    """After threads were used in the parent, too."""
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        wanted = answer()
        loader = torch.utils.data.DataLoader(
            Scans(), batch_size=None, num_workers=2, multiprocessing_context=method, timeout=200
        )
        assert list(loader) == [wanted] * 4
    finally:
        torch.set_num_threads(threads)


@pytest.mark.slow
def test_two_processes_compile_at_once(tmp_path: Path) -> None:
    """Into one empty folder; what they leave there is whole, and used by the next."""
    both = [start(tmp_path) for _ in range(2)]
    assert [output(process) for process in both] == [answer()] * 2
    files = {path.name: path.stat().st_mtime_ns for path in tmp_path.rglob("*.nb?")}
    assert any(name.endswith(".nbc") for name in files)
    assert output(start(tmp_path)) == answer()
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.rglob("*.nb?")} == files


@pytest.mark.slow
def test_no_folder_can_be_written(tmp_path: Path) -> None:
    """The process compiles for itself alone."""
    (tmp_path / "file").touch()
    assert output(start(tmp_path / "file")) == answer()


@pytest.mark.slow
def test_a_damaged_cache_is_made_anew(tmp_path: Path) -> None:
    assert output(start(tmp_path)) == answer()
    for path in tmp_path.rglob("*.nb?"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert output(start(tmp_path)) == answer()


def test_errors_in_shared_work_reach_the_caller() -> None:
    def fail(first: int, last: int) -> None:
        raise ValueError(f"{first}")

    with pytest.raises(ValueError, match="0"):
        share(fail, 10, 10**9)


@pytest.mark.parametrize("items", [1, 2, 7, 100])
def test_every_item_is_done_once(items: int) -> None:
    done: list[int] = []
    share(lambda first, last: done.extend(range(first, last)), items, 10**9)
    assert sorted(done) == list(range(items))
