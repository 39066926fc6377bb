"""The programs that measure durability, in small: what they print, what their records hold, and that they can fail."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

from tqann import TurboQuantIndex
from tqbench.records import read_record

FOLDER = Path(__file__).parent.parent.parent / "benchmarks"


def run(monkeypatch, program, folder, *arguments):
    monkeypatch.setattr(sys, "argv", [program, *arguments, "--out", str(folder), "--name", "record"])
    status = runpy.run_path(str(FOLDER / program))["main"]()
    return status, read_record(folder / "record.json")


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork")
def test_crash_points(monkeypatch, tmp_path, capsys):
    status, record = run(monkeypatch, "crash_points.py", tmp_path, "--every", "300", "--second", "1")
    assert status == 0
    assert record["suite"] == "crashes"
    assert record["wrong"] == []
    assert record["points"] == sum(row["points"] for row in record["results"]) > 50
    assert "0 with a wrong file" in capsys.readouterr().out


def test_sync_cost(monkeypatch, tmp_path):
    arguments = ["--n", "3000", "--d", "32", "--new", "100", "--repeats", "3", "--folder", str(tmp_path)]
    _, record = run(monkeypatch, "sync_cost.py", tmp_path, *arguments)
    results = record["results"]
    assert results["file_bytes"] > 3000 * 20
    assert 100 * 20 < results["sync_100_new"]["bytes"] < 100 * 20 + 256
    assert results["sync_100_new"]["median_ms"] > 0


def test_soak(monkeypatch, tmp_path):
    status, record = run(monkeypatch, "soak.py", tmp_path, "--steps", "100", "--vectors", "500")
    assert status == 0
    assert record["results"]["steps"] == sum(record["results"]["counts"].values()) == 100
    assert set(record["results"]["counts"]) >= {"add", "remove", "search", "sync", "reopen"}


@pytest.mark.parametrize("method", ["remove_ids", "sync"])
def test_a_soak_sees_what_is_lost(method, monkeypatch, tmp_path):
    """A removal that takes one vector more, and a sync that forgets the newest one."""
    plain = getattr(TurboQuantIndex, method)

    def broken(self, x, *options):
        if method == "remove_ids":
            return plain(self, np.concatenate([x, self.ids[:1]]))
        kept = self.copy()
        self.remove_ids(self.ids[-1:])
        plain(self, x, *options)
        self.__dict__.update(kept.__dict__)
        return None

    monkeypatch.setattr(TurboQuantIndex, method, broken)
    monkeypatch.setattr(sys, "argv", ["soak.py", "--steps", "2000", "--vectors", "500"])
    main = runpy.run_path(str(FOLDER / "soak.py"))["main"]
    with pytest.raises(AssertionError):
        main()
