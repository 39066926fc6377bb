"""The command line: what it prints, what it writes, how it fails and how fast it starts."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner

from tqcli.main import cli

ROWS = np.random.default_rng(0).standard_normal((120, 24)).astype(np.float32)


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", ROWS)

    def invoke(*arguments, status=0):
        result = CliRunner().invoke(cli, [str(a) for a in arguments])
        assert result.exit_code == status, result.output
        return result

    return invoke


@pytest.mark.parametrize(
    "command",
    [["--help"], ["bench", "ann", "--help"], ["bench", "speed", "--help"], ["index", "build", "--help"]],
)
def test_help_imports_nothing_heavy(command):
    code = (
        "import sys\n"
        "from tqcli.main import cli\n"
        f"try: cli({command!r})\n"
        "except SystemExit: pass\n"
        "heavy = {'numpy', 'faiss', 'torch', 'matplotlib', 'rich', 'tqann', 'tqcore'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


def test_env_says_what_is_active_and_why(run):
    found = json.loads(run("env", "--json").stdout)
    assert found["kernels"]["level"] in ("scalar", "avx2", "avx512", "neon")
    assert found["kernels"]["why"]
    assert "faiss" in found["optional"]
    assert found["kernels"]["level"] in run("env").stdout


def test_build_search_info(run):
    run("index", "build", "x.npy", "x.tqann", "--bits", "8", "--metric", "ip")
    described = json.loads(run("index", "info", "x.tqann", "--json").stdout)
    assert (described["ntotal"], described["d"], described["bits"]) == (120, 24, 8)
    assert described["bytes_per_vector"] == 28
    assert "120 vectors, d = 24, chain at 8 bits, metric ip" in run("index", "info", "x.tqann").stdout
    found = json.loads(run("index", "search", "x.tqann", "x.npy", "-k", "5", "--nq", "7", "--json").stdout)
    assert np.array(found["ids"]).shape == (7, 5)
    exact = np.argsort(-ROWS[:7] @ ROWS.T, axis=1)[:, 0]
    assert (np.array(found["ids"])[:, 0] == exact).all()
    run("index", "search", "x.tqann", "x.npy", "--out", "answers", "--mmap")
    assert np.load("answers.ids.npy").shape == (120, 10)
    assert np.load("answers.distances.npy").dtype == np.float32


def test_calibrated_build(run):
    built = json.loads(run("index", "build", "x.npy", "c.tqann", "--plan", "calibrated", "--json").stdout)
    assert built["plan"] == "calibrated"
    assert "chain (calibrated) at 4 bits" in run("index", "info", "c.tqann").stdout


def test_without_click_one_line_says_what_to_install():
    code = (
        "import importlib.util as u\n"
        "find = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'click' else find(name, *rest)\n"
        "from tqcli.main import cli\n"
        "cli()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert done.stderr == "error: tq needs click, which is not installed: pip install 'tqann[bench]'\n"


def test_own_ids_and_parquet(run):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pa.table({"v": ROWS.tolist()}), "x.parquet")
    np.save("ids.npy", np.arange(120) + 1000)
    built = json.loads(run("index", "build", "x.parquet", "p.tqann", "--ids", "ids.npy", "--json").stdout)
    assert built["ntotal"] == 120
    found = json.loads(run("index", "search", "p.tqann", "x.npy", "-k", "1", "--json").stdout)
    assert found["ids"] == [[i] for i in range(1000, 1120)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["index", "info", "absent.tqann"], "no such file: absent.tqann"),
        (["index", "info", "x.npy"], ""),
        (["index", "build", "absent.npy", "o"], "no such file: absent.npy"),
        (["index", "build", "x.npy", "o", "--bits", "9.25"], "bits"),
        (["index", "build", "x.npy", "o", "--ids", "x.npy"], "ids must be 120 integers"),
        (["bench", "ann", "--methods", "nothing"], "methods must be among"),
        (["bench", "ann", "--source", "file"], "needs the vectors: --base FILE"),
        (["bench", "ann", "--bits", "2,x"], "is not a list of numbers"),
        (["bench", "ann", "-k", "0"], "k must be at least 1"),
        (["bench", "speed", "--nq", "1.5"], "is not a list of whole numbers"),
        (["bench", "speed", "--d", "4"], "d must be whole numbers of at least 8, got 4"),
        (["bench", "speed", "--methods", "flat"], "methods must be among"),
        (["bench", "speed", "--updates-n", "5"], "updates-n must be at least 100"),
        (["bench", "speed", "--repeats", "0"], "repeats must be at least 1"),
        (["bench", "ann", "--source", "qwen", "--text-dir", "absent"], ""),
    ],
)
def test_errors_are_one_line_with_status_2(run, arguments, message):
    result = run(*arguments, status=2)
    assert message in result.stderr
    assert "Traceback" not in result.output
    assert result.stdout == ""
    if not result.stderr.startswith("Usage"):
        assert result.stderr.startswith("error: ")
        assert result.stderr.count("\n") == 1


def test_bench_ann_on_a_file(run, tmp_path):
    pytest.importorskip("faiss")
    arguments = [
        "bench",
        "ann",
        "--source",
        "file",
        "--base",
        "x.npy",
        "--bits",
        "4",
        "--methods",
        "chain,flat,sqtqmse",
    ]
    result = run(*arguments, "--repeats", "1", "--no-memory", "--name", "mine", "--out", "results", "--json")
    record = json.loads(result.stdout)
    assert [row["method"] for row in record["results"]] == ["flat", "chain", "sqtqmse"]
    assert {path.name for path in (tmp_path / "results").iterdir()} == {"mine.json", "mine.png", "mine.html"}
    assert json.loads((tmp_path / "results" / "mine.json").read_text()) == record
    printed = run(*arguments, "--repeats", "1", "--no-memory").stdout
    assert "tqann chain" in printed
    assert "wrote tq-results" in printed


def test_bench_speed_on_a_file(run, tmp_path):
    pytest.importorskip("faiss")
    axes = ["--sets", "real", "--bits", "4", "--n", "100", "--nq", "1,3", "--threads", "1"]
    arguments = ["bench", "speed", "--base", "x.npy", *axes, "--methods", "chain,rabitq-fs", "--no-updates"]
    result = run(*arguments, "--repeats", "1", "--name", "mine", "--out", "results", "--json")
    record = json.loads(result.stdout)
    (group,) = record["results"]
    assert (group["set"], group["d"], group["metric"]) == ("real", 24, "cosine")
    assert {path.name for path in (tmp_path / "results").iterdir()} == {"mine.json", "mine.png", "mine.html"}
    printed = run(*arguments, "--repeats", "1").stdout
    assert "Limits at one thread" in printed
    assert "wrote tq-results" in printed
