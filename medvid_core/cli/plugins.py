"""List everything the installed plugins offer, and every plugin that failed to load with the reason."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from medvid_core import plugins
from medvid_core.plugins import Registry


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``plugins``."""
    parser.add_argument("action", choices=["list"], nargs="?", default="list", help="list (the default)")
    parser.add_argument("--json", action="store_true", help="as JSON")


def _plural(kind: str) -> str:
    return f"{kind}es" if kind.endswith("s") else f"{kind}s"


def describe(registry: Registry) -> dict[str, Any]:
    """Return everything as plain data."""
    return {
        "plugins": registry.distributions,
        **{
            _plural(kind): [
                {
                    "name": entry.spec.name,
                    "full_name": entry.full_name,
                    "version": entry.version,
                    "tasks": list(getattr(entry.spec, "tasks", ())),
                    "summary": entry.spec.card.summary,
                }
                for entry in entries
            ]
            for kind, entries in registry.provided.items()
        },
        "problems": [
            {"distribution": problem.distribution, "stage": problem.stage, "cause": problem.cause}
            for problem in registry.problems
        ],
    }


def run(arguments: argparse.Namespace) -> None:
    """Carry out ``plugins``."""
    registry = plugins.registry()
    listing = describe(registry)
    if arguments.json:
        print(json.dumps(listing, indent=2))
        return
    for kind in registry.provided:
        print(_plural(kind))
        for entry in listing[_plural(kind)]:
            print(f"  {entry['name']:<16} {entry['full_name'].partition('/')[0]:<20} {entry['summary']}".rstrip())
        if not listing[_plural(kind)]:
            print("  none")
    for problem in registry.problems:
        print(problem, file=sys.stderr)
