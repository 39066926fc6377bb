"""Raw results as JSON lines, one a line as soon as it is there, so that an interrupted run goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import BenchError

__all__ = ["Journal"]


class Journal:
    """Results by key in a file whose name depends on the settings, so that only equal settings share one.

    Parameters
    ----------
    folder, name : path, str
        The file is FOLDER/NAME-<hash of settings>.jsonl; its first line holds the settings.
    settings : mapping
        Whatever results depend on; must be JSON.
    fresh : bool
        Drop what an earlier run left.

    Raises
    ------
    BenchError
        If the file cannot be written, or is not a journal.
    """

    def __init__(
        self, folder: str | Path, name: str, settings: Mapping[str, Any], fresh: bool = False
    ) -> None:
        head = json.dumps({"settings": settings}, sort_keys=True)
        digest = hashlib.sha256(head.encode()).hexdigest()[:10]
        self.path = Path(folder) / f"{name}-{digest}.jsonl"
        self._known: dict[str, Any] = {}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.path.is_file() and not fresh:
                self._read(head)
            else:
                self.path.write_text(head + "\n", encoding="utf-8")
        except OSError as error:
            raise BenchError(f"cannot write to {folder}: {error.strerror}") from error
        self.resumed = len(self._known)

    def _read(self, head: str) -> None:
        """Take what whole lines say, and cut off a last line that an interruption tore."""
        data = self.path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        lines = whole.decode("utf-8").splitlines()
        if not lines:
            self.path.write_text(head + "\n", encoding="utf-8")
            return
        if lines[0] != head:
            raise BenchError(f"{self.path} is not a journal of these settings; remove it or use --fresh")
        try:
            for line in lines[1:]:
                entry = json.loads(line)
                self._known[entry["key"]] = entry["result"]
        except (ValueError, KeyError, TypeError) as error:
            raise BenchError(f"{self.path} is damaged ({error}); remove it or use --fresh") from error
        if len(whole) != len(data):
            with self.path.open("r+b") as file:
                file.truncate(len(whole))

    def get(self, key: str) -> Any:
        """What was written under `key`, or None."""
        return self._known.get(key)

    def put(self, key: str, result: Any) -> None:
        """Write a result at once."""
        self._known[key] = result
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"key": key, "result": result}) + "\n")
