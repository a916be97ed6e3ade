"""Check the scan backends of this machine: which are here, whether they compute what they should, and how fast.

Every backend present is compared with the definition in float64, forward and backward. Ends with exit code 1 if one
disagrees or fails.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medvid_core.ops.doctor import Check


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``doctor``."""
    parser.add_argument("--json", action="store_true", help="as JSON")


def run(arguments: argparse.Namespace) -> None:
    """Carry out ``doctor``."""
    found = describe(_check_all())
    if arguments.json:
        print(json.dumps(found, indent=2))
    else:
        show(found)
    if not found["ok"]:
        sys.exit(1)


def _check_all() -> list[Check]:
    """Check all there is, saying what is being checked."""
    from medvid_core.engine.progress import Progress
    from medvid_core.ops import doctor

    progress = Progress()
    checks = []
    with progress:
        for backend, device in progress.track(doctor.pairs(), "checking"):
            progress.say(f"checking {backend} on {device}")
            checks.append(doctor.check(backend, device))
    return checks


def describe(checks: list[Check]) -> dict[str, Any]:
    """Return everything as plain data."""
    import torch

    from medvid_core.ops import doctor
    from medvid_core.ops.backends import BACKENDS, absence, choose_backend

    listing = []
    for name, backend in BACKENDS.items():
        missing = absence(name)
        listing.append(
            {
                "name": name,
                "summary": backend.summary,
                "present": missing is None,
                "absence": missing,
                "install": backend.install if missing is not None and "installed" in missing else None,
                "checks": [_check(check) for check in checks if check.backend == name],
            }
        )
    choices = {device: choose_backend("auto", device) for device in doctor.devices()}
    return {
        "ok": not any(check.problem for check in checks),
        "versions": doctor.versions(),
        "threads": torch.get_num_threads(),
        "devices": [
            {"device": device, "name": name, "auto": {"backend": choice.name, "reason": choice.reason}}
            for (device, name), choice in zip(doctor.devices().items(), choices.values(), strict=True)
        ],
        "backends": listing,
    }


def _check(check: Check) -> dict[str, Any]:
    return {
        "device": check.device,
        "ok": not check.problem,
        "problem": check.problem or None,
        "errors": {
            dtype: {
                "worst": found.error if math.isfinite(found.error) else None,  # JSON has no infinity
                "where": found.where,
                "limit": found.limit,
            }
            for dtype, found in check.agreements.items()
        },
        "speed_relative_to_torch": check.speed,
    }


def show(found: dict[str, Any]) -> None:
    """Print what `describe` returned: a table, and below it whatever is too long for one."""
    from rich.console import Console

    console = Console(soft_wrap=True, highlight=False, markup=False)
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    console.print(f"{versions}; {found['threads']} threads")
    for device in found["devices"]:
        console.print(f"{device['device']:<8} {device['name']}")
    console.print()
    console.print(_table(found["backends"]))
    console.print("errors are relative, the worst of outputs and gradients")
    console.print("speed is that of forward and backward; while the machine is busy it means little\n")
    for backend in found["backends"]:
        if not backend["present"]:
            console.print(f"absent   {backend['name']}: {backend['absence']}")
        if backend["install"]:
            console.print(f"install  {backend['name']}: {backend['install']}")
    for device in found["devices"]:
        console.print(f"auto     {device['device']}: {device['auto']['backend']}, {device['auto']['reason']}")
    for backend in found["backends"]:
        for check in backend["checks"]:
            if check["problem"]:
                console.print(f"wrong    {backend['name']} on {check['device']}: {check['problem']}")


def _table(backends: list[dict[str, Any]]) -> Any:
    """Return a table with a row for every backend and device."""
    from rich import box
    from rich.table import Table

    from medvid_core.ops import doctor

    limits = {str(dtype).removeprefix("torch."): limit for dtype, limit in doctor.LIMITS.items()}
    table = Table(box=box.SIMPLE)
    for column in ("backend", "device", "result"):
        table.add_column(column, no_wrap=True)
    for dtype, limit in limits.items():
        table.add_column(f"{dtype}\n≤ {limit:.0e}", no_wrap=True, justify="right")
    table.add_column("speed\n/ torch", no_wrap=True, justify="right")
    for backend in backends:
        if not backend["present"]:
            table.add_row(backend["name"], "", "absent")
        for check in backend["checks"]:
            errors = [_number(check["errors"].get(dtype)) for dtype in limits]
            speed = check["speed_relative_to_torch"]
            result = "agrees" if check["ok"] else "WRONG"
            table.add_row(backend["name"], check["device"], result, *errors, "" if speed is None else f"{speed:.2g} ×")
    return table


def _number(error: dict[str, Any] | None) -> str:
    if error is None:
        return ""
    return "not finite" if error["worst"] is None else f"{error['worst']:.1e}"
