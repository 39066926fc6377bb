"""Records of runs: one JSON file each, the only origin of tables and plots."""

from __future__ import annotations

import json
import os
import re
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from .errors import BenchError

__all__ = ["FORMAT", "new_record", "read_record", "read_records", "record_name", "write_record"]

FORMAT = 1


def new_record(suite: str, **parts: Any) -> dict[str, Any]:
    """A record with its date, its machine, the versions and the command."""
    from .machine import command_line, describe_machine, package_versions, source_commit

    return {
        "format": FORMAT,
        "suite": suite,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": command_line(),
        "commit": source_commit(),
        "machine": describe_machine(),
        "versions": package_versions(),
        **parts,
    }


def record_name(record: dict[str, Any]) -> str:
    """File name without suffix: suite, source and time."""
    source = record.get("dataset", {}).get("name", "")
    stamp = record["created"][:19].replace("-", "").replace(":", "")
    return re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(filter(None, [record["suite"], source, stamp])))


def write_record(record: dict[str, Any], folder: str | Path, name: str | None = None) -> Path:
    """Write a record as JSON, whole or not at all, and return its path."""
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{name or record_name(record)}.json"
        partial = path.with_suffix(f".{os.getpid()}.partial")
        partial.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise BenchError(f"cannot write to {folder}: {error.strerror}") from error
    return path


def read_record(path: str | Path) -> dict[str, Any]:
    """Read a record.

    Raises
    ------
    BenchError
        When the file is no record, or of a later format.
    """
    path = Path(path)
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BenchError(f"cannot read the record {path.name}: {error}") from error
    if not isinstance(record, dict) or "format" not in record or "suite" not in record:
        raise BenchError(f"{path.name} is not a record of a benchmark")
    if record["format"] > FORMAT:
        raise BenchError(f"{path.name} has format {record['format']}; this version reads up to {FORMAT}")
    return record


def read_records(folder: str | Path) -> dict[str, dict[str, Any]]:
    """Every record of a folder by file name without suffix, in order of names."""
    return {path.stem: read_record(path) for path in sorted(Path(folder).glob("*.json"))}
