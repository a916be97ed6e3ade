"""The ways to compute the scan: which of them this machine has, and which one a tensor gets."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from medvid_core.errors import ConfigError, did_you_mean


@dataclass(frozen=True, kw_only=True)
class Backend:
    """One way to compute the scan.

    Attributes:
        summary: what it is, in a few words.
        devices: types of devices it runs on; empty for all.
        dtypes: types of u it takes; empty for every floating type.
        module: what has to be importable.
        install: how to get it, where it is absent.
    """

    summary: str
    devices: tuple[str, ...] = ()
    dtypes: tuple[torch.dtype, ...] = ()
    module: str = "torch"
    install: str = ""


_HALF_AND_SINGLE = (torch.float32, torch.bfloat16, torch.float16)

BACKENDS: Mapping[str, Backend] = MappingProxyType(
    {
        "reference": Backend(summary="the definition, step by step"),
        "torch": Backend(summary="chunked, in plain PyTorch"),
        "cpu": Backend(
            summary="compiled for this processor by Numba",
            devices=("cpu", "meta"),
            dtypes=_HALF_AND_SINGLE,
            module="numba",
            install="pip install numba",
        ),
        "triton": Backend(
            summary="compiled for this GPU by Triton",
            devices=("cuda",),
            dtypes=_HALF_AND_SINGLE,
            module="triton",
            install="pip install triton",
        ),
        "mamba_ssm": Backend(
            summary="the CUDA kernel of mamba-ssm",
            devices=("cuda",),
            dtypes=_HALF_AND_SINGLE,
            module="selective_scan_cuda",
            install='pip install "medvid-core[mamba-ssm]"',
        ),
    }
)
"""Every backend by name. ``reference`` defines the scan; the others must agree with it (``medvid-run doctor``)."""

PREFERRED = ("cpu", "triton", "mamba_ssm", "torch")
"""What ``auto`` tries, in this order."""


@dataclass(frozen=True)
class Choice:
    """A backend and why it was chosen."""

    name: str
    reason: str


def interpreted() -> bool:
    """Whether Triton's interpreter is on, which runs its kernels on a CPU (slowly, for tests)."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def absence(name: str) -> str | None:
    """Why a backend cannot be used on this machine, or None if it can."""
    module = BACKENDS[name].module
    if importlib.util.find_spec(module) is None:
        return f"{module} is not installed"
    if name in ("triton", "mamba_ssm") and not torch.cuda.is_available() and not (name == "triton" and interpreted()):
        return "there is no GPU that PyTorch can use"
    try:  # it may be there and not load: built for another library, for example
        importlib.import_module(module)
        if name == "mamba_ssm":
            importlib.import_module("mamba_ssm.ops.selective_scan_interface")
    except Exception as error:
        return f"{module} does not load: {error}"
    return None


def misfit(name: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why a backend does not take tensors of this device and type, or None if it does."""
    backend = BACKENDS[name]
    simulated = name == "triton" and device.type == "cpu" and interpreted()
    if backend.devices and device.type not in backend.devices and not simulated:
        return f"it does not run on {device.type} tensors"
    if backend.dtypes and dtype not in backend.dtypes:
        return f"it does not compute in {str(dtype).removeprefix('torch.')}"
    return None


def choose_backend(name: str, device: torch.device | str, dtype: torch.dtype = torch.float32) -> Choice:
    """The backend that ``name`` stands for, for tensors of this device and type.

    ``auto`` is the first of `PREFERRED` that fits.

    Raises:
        ConfigError: there is no such backend, or it is absent here, or it does not take such tensors.
    """
    device = torch.device(device)
    if name == "auto":
        passed_over: list[str] = []
        for candidate in PREFERRED:
            reason = misfit(candidate, device, dtype) or absence(candidate)
            if reason is None:
                why = "; ".join([f"first choice for {device.type} tensors", *passed_over])
                return Choice(candidate, why)
            if not BACKENDS[candidate].devices or device.type in BACKENDS[candidate].devices:
                passed_over.append(f"not {candidate}: {reason}")
    if name not in BACKENDS:
        known = ("auto", *BACKENDS)
        raise ConfigError(f"No scan backend {name!r}; known: {', '.join(known)}.{did_you_mean(name, known)}")
    missing = absence(name)
    if missing is not None:
        install = BACKENDS[name].install
        raise ConfigError(
            f"Scan backend {name!r} cannot be used here: {missing}. Choose auto"
            + (f", or install it: {install}" if "installed" in missing else ".")
        )
    unfit = misfit(name, device, dtype)
    if unfit is not None:
        raise ConfigError(f"Scan backend {name!r} cannot be used here: {unfit}. Choose auto.")
    return Choice(name, "asked for by name")


def refuse_tangents(*tensors: Tensor | None) -> None:
    """Refuse forward-mode differentiation, which passes operators of our own by with a derivative of zero.

    Raises:
        NotImplementedError: one of the tensors carries a tangent.
    """
    if torch.compiler.is_compiling():
        return
    unpack: Any = forward_ad.unpack_dual
    if any(x is not None and unpack(x).tangent is not None for x in tensors):
        raise NotImplementedError("No forward-mode derivative (torch.func.jvp) here: use scan backend 'reference'.")


def kernels_compiled() -> bool:
    """Whether the kernels of backend ``cpu`` lie compiled on this machine; else the first call waits for it."""
    from medvid_core.ops.lanes import cache_folder

    try:
        return any(cache_folder().rglob("*.nbc"))
    except (OSError, RuntimeError):  # there is no home, so nothing is kept
        return False


# what torch.compiler.assume_constant_result does, without importing the compiler, which takes seconds
choose_backend._dynamo_marked_constant = True  # type: ignore[attr-defined]
absence._dynamo_marked_constant = True  # type: ignore[attr-defined]
