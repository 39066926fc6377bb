"""LongBench's examples: from a folder in its own layout, or from the archive on the Hugging Face Hub."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import BenchError
from .metrics import PARAGRAPH
from .tasks import E_TASKS, TASKS, Task

__all__ = ["BUCKETS", "Example", "Source", "download", "read_folder"]

BUCKETS = ("0-4k", "4-8k", "8k+")
"""Lengths that LongBench-E tells apart: below 4,000, below 8,000, and others."""
_HUB = "THUDM/LongBench"
_TYPES = {"input": str, "context": str, "answers": list, "length": int}


@dataclass(frozen=True)
class Example:
    """One example; `length` counts words, of Chinese characters; `key` differs between examples."""

    input: str
    context: str
    answers: tuple[str, ...]
    length: int
    classes: tuple[str, ...]
    key: str

    @property
    def bucket(self) -> str:
        """The one of `BUCKETS` that the length lies in."""
        return BUCKETS[(self.length >= 4000) + (self.length >= 8000)]


@dataclass(frozen=True)
class Source:
    """Examples of one file, the name it is reported under, and their task."""

    name: str
    task: Task
    examples: tuple[Example, ...]


def read_folder(folder: str | Path, names: tuple[str, ...] = (), e: bool = False) -> list[Source]:
    """Examples of every file of a folder.

    Parameters
    ----------
    folder : path
        Holds `<task>.jsonl` and, for LongBench-E, `<task>_e.jsonl`, or a folder `data` that does. A file of another
        name is of the task that its lines name in `dataset`, and reported under its own name.
    names : tuple of str
        Files wanted, without suffixes; empty takes all.
    e : bool
        LongBench-E instead of LongBench.

    Raises
    ------
    BenchError
        If a file is missing, or a line is not an example; the message names file and line.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise BenchError(f"data_dir must be a folder with LongBench's <task>.jsonl files, got {folder}")
    inner = folder / "data"
    paths = sorted((inner if inner.is_dir() else folder).glob("*.jsonl"))
    held = {path.stem: path for path in paths if path.stem.endswith("_e") == e}
    wanted = _wanted(held, names, e, str(folder))
    sources = []
    for name in wanted:
        try:
            lines = held[name].read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise BenchError(f"{held[name]} cannot be read as UTF-8 text: {error}") from error
        sources.append(_parse(name, str(held[name]), lines))
    return sources


def download(names: tuple[str, ...] = (), e: bool = False, local_files_only: bool = False) -> list[Source]:
    """Examples out of the archive that LongBench keeps on the Hub.

    The archive is read as it is, because `datasets` no longer runs the script that unpacks it.

    Raises
    ------
    BenchError
        If it cannot be had; the message says what to do.
    """
    from huggingface_hub import hf_hub_download

    try:
        path = hf_hub_download(_HUB, "data.zip", repo_type="dataset", local_files_only=local_files_only)
    except (OSError, ValueError) as error:  # the Hub's errors, and those of a network that is not there
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BenchError(
            f"LongBench cannot be downloaded ({first}); fetch it where there is a network with `hf download {_HUB} "
            f"data.zip --repo-type dataset`, unpack it, and give --data-dir FOLDER"
        ) from error
    try:
        with zipfile.ZipFile(path) as archive:
            inside = {Path(name).stem: name for name in archive.namelist() if name.endswith(".jsonl")}
            held = {stem: name for stem, name in inside.items() if stem.endswith("_e") == e}
            return [
                _parse(name, f"{path}:{held[name]}", archive.read(held[name]).decode("utf-8").split("\n"))
                for name in _wanted(held, names, e, path)
            ]
    except (zipfile.BadZipFile, UnicodeDecodeError) as error:
        raise BenchError(f"{path} is damaged ({error}); remove it and run again") from error


def _wanted(held: Iterable[str], names: tuple[str, ...], e: bool, where: str) -> list[str]:
    """Names of files in LongBench's order of tasks, others after them."""
    suffix = "_e" if e else ""
    order = [task + suffix for task in (E_TASKS if e else TASKS)]
    known = [name for name in order if name in held] + [name for name in held if name not in order]
    given = [name if name in held else name + suffix for name in names]
    absent = [name for name in given if name not in held]
    if absent or not known:
        missing = ", ".join(f"{name}.jsonl" for name in absent) or f"any <task>{suffix}.jsonl"
        raise BenchError(f"{where} lacks {missing}; it has {', '.join(known) or 'none of this kind'}")
    return [name for name in known if not given or name in given]


def _parse(name: str, where: str, lines: list[str]) -> Source:
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise BenchError(f"{where} line {number} must be JSON: {error}") from error
        if not isinstance(row, dict):
            raise BenchError(f"{where} line {number} must be a JSON object, got {type(row).__name__}")
        rows.append((f"{where} line {number}", row))
    if not rows:
        raise BenchError(f"{where} must hold examples, got none")
    named = name.removesuffix("_e")
    if named not in TASKS:
        named = str(rows[0][1].get("dataset", "")).removesuffix("_e")
    if named not in TASKS:
        raise BenchError(f"{rows[0][0]}: dataset must be a task of LongBench, got {named!r}")
    task = TASKS[named]
    return Source(name, task, tuple(_example(task, where, row) for where, row in rows))


def _example(task: Task, where: str, row: dict[str, Any]) -> Example:
    for field, kind in _TYPES.items():
        value = row.get(field)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise BenchError(f"{where}: {field} must be {kind.__name__}, got {value!r:.60}")
    answers, classes = row["answers"], row.get("all_classes") or []
    for field, values in (("answers", answers), ("all_classes", classes)):
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise BenchError(f"{where}: {field} must be a list of str, got {values!r:.60}")
    if not answers:
        raise BenchError(f"{where}: answers must not be empty")
    if task.metric == "classification" and not classes:
        raise BenchError(f"{where}: all_classes must name the classes of {task.name}, got none")
    form = PARAGRAPH.get(task.metric)
    if form and not all(form.search(answer) for answer in answers):
        raise BenchError(f"{where}: answers of {task.name} must match {form.pattern!r}, got {answers!r:.60}")
    whole = json.dumps([row[field] for field in _TYPES], ensure_ascii=False)
    digest = hashlib.sha256(whole.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    return Example(row["input"], row["context"], tuple(answers), row["length"], tuple(classes), digest)
