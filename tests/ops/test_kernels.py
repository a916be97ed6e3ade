"""The compiled kernels under circumstances: threads, forked and spawned processes, folders that cannot be written."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import medvid_core.ops
from medvid_core.ops import depthwise_conv, lanes, selective_scan
from medvid_core.ops.conv import grouped_causal_conv
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
    """The process compiles for itself alone; above all, nothing is left in the package, or taken from there."""
    (tmp_path / "file").touch()
    assert output(start(tmp_path / "file")) == answer()
    assert not list(Path(medvid_core.ops.__file__).parent.rglob("*.nb?"))


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


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16])
def test_default_type_and_device_change_nothing(kind: torch.dtype) -> None:
    """Those of PyTorch are for new tensors of the user's, not for the kernels' memory."""
    u, weight, bias = torch.randn(1, 32, 70), torch.randn(1, 32, 4), torch.randn(1, 32)
    volume, taps = torch.randn(1, 2, 5, 7, 32), torch.randn(32, 3, 3, 3)

    def outcome() -> list[Tensor]:
        conv = grouped_causal_conv(u.requires_grad_(), weight.requires_grad_(), bias.requires_grad_())
        depthwise = depthwise_conv(volume, taps.requires_grad_(), bias[0])
        loss = conv.square().sum() + depthwise.square().sum()
        return [*torch.autograd.grad(loss, (u, weight, bias, taps))]

    wanted, scanned = outcome(), answer()
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(kind)
        found = outcome()
    finally:
        torch.set_default_dtype(before)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    assert answer() == scanned


@pytest.mark.slow
def test_compiling_under_another_default_type(tmp_path: Path) -> None:
    """Constants of the machine code are of float32 whatever the default is at that moment."""
    process = subprocess.run(
        [sys.executable, "-c", "import torch; torch.set_default_dtype(torch.bfloat16)" + PROGRAM],
        env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)},
        check=False,
    )
    assert process.returncode == 0
    assert output(start(tmp_path)) == answer()


def test_nothing_to_do() -> None:
    empty = torch.zeros(0, 16, 5, requires_grad=True)
    B = torch.zeros(0, 4, 5)
    D = torch.zeros(16, requires_grad=True)
    y = selective_scan(empty, empty, -torch.ones(16, 4), B, B, D, backend="cpu")
    assert isinstance(y, Tensor)
    assert y.shape == (0, 16, 5)
    (grad,) = torch.autograd.grad(y.sum(), D)
    assert torch.equal(grad, torch.zeros(16))


def test_an_interrupt_waits_for_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing writes any more when the caller gets the exception: the memory may be gone by then."""
    monkeypatch.setattr(lanes, "_openmp", lambda: None)
    running, finished = threading.Event(), []

    def run(first: int, last: int) -> None:
        running.set()
        time.sleep(0.2)
        finished.append(first)

    def interrupt(futures: list[Future[None]]) -> None:
        if not interrupted:
            interrupted.append(True)
            running.wait()
            raise KeyboardInterrupt
        real_wait(futures)

    interrupted: list[bool] = []
    real_wait = lanes.wait
    monkeypatch.setattr(lanes, "wait", interrupt)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with pytest.raises(KeyboardInterrupt):
            share(run, 100, 10**9)
    finally:
        torch.set_num_threads(threads)
    done = len(finished)
    assert 1 <= done <= 2
    time.sleep(0.3)
    assert len(finished) == done


def test_long_sums_keep_their_digits() -> None:
    """Gradients of weights are sums over all positions."""
    length = 20480
    x, weight, bias = torch.rand(1, 16, length), torch.rand(1, 16, 4), torch.rand(1, 16)
    for run, tensors in (
        (lambda a, w, b: grouped_causal_conv(a, w, b, backend="reference" if a.dtype == torch.float64 else "cpu"),
         (x, weight, bias)),
        (depthwise_conv, (x.view(1, 5, 64, 64, 16), torch.rand(16, 3, 3, 3), bias[0])),
    ):  # fmt: skip
        mine = [t.detach().requires_grad_() for t in tensors]
        exact = [t.detach().double().requires_grad_() for t in tensors]
        got, wanted = (torch.autograd.grad(run(*t).sum(), t[1:]) for t in (mine, exact))
        for a, b in zip(got, wanted, strict=True):
            assert ((a - b).abs() / b.abs()).max() < 2e-6


def test_gradients_of_what_was_exported_without() -> None:
    """No states were kept, so they are computed again."""

    class Scan(torch.nn.Module):
        def forward(self, u: Tensor, B: Tensor) -> Tensor:
            y = selective_scan(u, F.softplus(u), -torch.ones(16, 4), B, B, backend="cpu")
            assert isinstance(y, Tensor)
            return y

    u, B = torch.randn(1, 16, 100), torch.randn(1, 4, 100)
    with torch.no_grad():
        exported = torch.export.export(Scan(), (u, B)).module()
    u.requires_grad_()
    got, wanted = (torch.autograd.grad(module(u, B).square().sum(), u)[0] for module in (exported, Scan()))
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: depthwise_conv(torch.zeros(1, 1, 4, 4, 16), torch.zeros(2, 1, 3, 3), torch.zeros(2)), "^weight must"),
        (lambda: depthwise_conv(torch.zeros(1, 1, 4, 4, 2), torch.zeros(2, 1, 2, 2), torch.zeros(2)), "odd sizes"),
        (lambda: depthwise_conv(torch.zeros(1, 1, 4, 4, 2), torch.zeros(2, 1, 3, 3), torch.zeros(1)), "^bias must"),
        (lambda: grouped_causal_conv(torch.zeros(1, 20, 9), torch.zeros(1, 4, 4), torch.zeros(1, 4)), "^weight must"),
        (lambda: grouped_causal_conv(torch.zeros(1, 4, 9), torch.zeros(1, 4, 4), torch.zeros(2, 4)), "^bias must"),
    ],
)
def test_shapes_that_do_not_fit(call: Callable[[], Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
