"""What a record says of where it was made."""

from __future__ import annotations

import pytest

from tqbench import machine


def test_outside_a_tree_the_commit_is_what_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_output", lambda _: None)
    monkeypatch.delenv("TQ_COMMIT", raising=False)
    assert machine.source_commit() is None
    monkeypatch.setenv("TQ_COMMIT", "0123456789ab")
    assert machine.source_commit() == "0123456789ab"


def test_a_tree_knows_its_commit_better_than_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"rev-parse": "fedcba987654", "ls-files": "machine.py", "status": ""}
    monkeypatch.setattr(machine, "_output", lambda command: answers[command[3]])
    monkeypatch.setenv("TQ_COMMIT", "0123456789ab")
    assert machine.source_commit() == "fedcba987654"
