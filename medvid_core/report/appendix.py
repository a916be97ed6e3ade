"""What one needs to trust and repeat a run: problems, environment, configuration."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any

from medvid_core.report.rundata import RunData, as_float
from medvid_core.report.text import details, duration, esc, facts, section, tag

_SHOWN = 20
_PRECISION = {"no": "float32", "bf16": "bfloat16 and float32, mixed", "fp16": "float16 and float32, mixed"}


def notices(run: RunData) -> str:
    """Return what went wrong: an unfinished run, plugins that failed, cases that were left out."""
    record = run.record
    lines = []
    if record.get("status") in ("failed", "stopped"):
        lines.append(f"The run {record['status']} before its end: what follows is incomplete.")
    lines += [str(note)[:1].upper() + str(note)[1:] for note in (record.get("notes") or [])[:_SHOWN]]
    lines += [f"No overlay of {e.get('case_id')}: {e['problem']}" for e in run.overlays if e.get("problem")]
    return tag("div", "".join(tag("p", esc(line)) for line in lines), class_="notice", role="note") if lines else ""


def environment_section(run: RunData) -> str:
    """Return how the run was made, folded."""
    return section(
        "How it was made",
        _costs(run),
        details("Configuration (config.yaml)", _pre(run.config)),
        details("Where each setting came from", _flat(run.record.get("origins"))),
        details("Versions", _flat({**_map(run.record.get("versions")), **_map(run.record.get("plugins"))})),
        details("Hardware", _flat(run.record.get("hardware"))),
        details("Cases left out", _flat((run.record.get("dataset") or {}).get("skipped"))),
        details("Which case is in which part", _splits(run)),
    )


def _map(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _costs(run: RunData) -> str:
    record, model, data = run.record, _map(run.record.get("model")), _map(run.record.get("dataset"))
    scan = _map(record.get("scan"))
    memory, best = as_float(record.get("peak_memory_mib")), _map(record.get("best")).get("step")
    command = record.get("command")
    return facts(
        [
            ("command", shlex.join(map(str, command)) if isinstance(command, list) else command),
            ("model", " ".join(str(model.get(key, "")) for key in ("name", "version")).strip()),
            ("weights kept from", f"step {best}" if best is not None else ""),
            ("data", " at ".join(str(data[key]) for key in ("name", "root") if data.get(key))),
            ("data fingerprint", str(data.get("fingerprint", ""))[:16]),
            ("training time", duration(as_float(record.get("seconds"))) if record.get("seconds") is not None else ""),
            ("peak memory", f"{memory / 1024:.2f} GiB" if memory == memory else ""),
            ("selective scan", f"{scan['backend']}: {scan['reason']}" if "reason" in scan else ""),
            ("precision", _PRECISION.get(str(record.get("precision")), record.get("precision"))),
            ("seed", record.get("seed")),
            ("started", record.get("started")),
            ("directory", record.get("directory")),
        ]
    )


def _pre(text: str) -> str:
    return tag("pre", esc(text)) if text.strip() else ""


def _flat(mapping: Any) -> str:
    """Return a mapping as list of names and values."""
    return facts((str(k), v if isinstance(v, str) else json.dumps(v, default=str)) for k, v in _map(mapping).items())


def _splits(run: RunData) -> str:
    return facts((part, ", ".join(map(str, ids))) for part, ids in run.splits.items() if isinstance(ids, list) and ids)
