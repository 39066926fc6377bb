"""`tq bench all`: steps, verdicts, what was finished before, the report and exit statuses."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from tqbench.checks import Check, at_least, at_most, counts, skipped
from tqbench.errors import BenchError
from tqbench.everything import ann, attention, divergence, memory, run
from tqbench.everything.context import Context
from tqbench.everything.options import STEPS, AllOptions
from tqbench.everything.report import (
    claims_markdown,
    reviewed_markdown,
    verdicts_markdown,
    write_all_report,
)
from tqbench.everything.samples import SAMPLE_TASKS, write_samples
from tqbench.everything.verdicts import claim_rows, reviewed_rows
from tqbench.tables import main as tables_main
from tqbench.tables import render
from tqcli.main import cli

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

SMALL = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "eos_token_id": None,
    "bos_token_id": None,
}


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    """A tiny model with one token a byte."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    inner = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[])
    )
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = tokenizers.decoders.ByteLevel()
    transformers.PreTrainedTokenizerFast(tokenizer_object=inner).save_pretrained(folder)
    torch.manual_seed(5)
    transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**SMALL)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def record(model_folder, tmp_path_factory):
    """Four steps in full on the tiny model."""
    options = AllOptions(
        quick=True,
        only=("theory", "model", "memory", "throughput"),
        repeats=1,
        warmup=0,
        model_id=str(model_folder),
        local_files_only=True,
        device="cpu",
        out=str(tmp_path_factory.mktemp("out")),
    )
    return run.run_all(options)


def tampered(record, name, **fields):
    """The record with one check changed."""
    checks = [row | fields if row["name"] == name else row for row in record["checks"]]
    assert checks != record["checks"]
    return record | {"checks": checks, "counts": counts(Check(**row) for row in checks)}


def verdicts(record):
    return {row["claim"]: row["verdict"] for row in claim_rows(record)}


def test_steps_pass_on_a_small_model(record):
    assert [step["name"] for step in record["steps"]] == ["theory", "model", "memory", "throughput"]
    assert record["counts"]["FAIL"] == record["counts"]["SKIP"] == 0
    names = [(row["group"], row["name"]) for row in record["checks"]]
    assert len(set(names)) == len(names)
    assert all(row["threshold"] for row in record["checks"])
    found = {row["name"]: row for row in record["checks"]}
    assert found["Qwen3.6-27B, 262,144 tokens: GiB of keys and values in bfloat16"]["value"] == 16
    assert found["Qwen3.6-27B, 262,144 tokens: ratio of all memory, everything counted"]["review"] == "1.23"
    ratio = found["tiny, 32,768 tokens, 2.5 bits: ratio of the cache alone"]
    assert ratio["theory"] == 6.4
    assert ratio["value"] < 6.4
    assert found["chain-2, 1,024 tokens: speed over full precision, processor"]["value"] > 0
    assert verdicts(record)["decoding runs at 0.75 of full precision"] == "not tested"  # on a processor
    json.dumps(record, allow_nan=False)


def test_claims_follow_from_the_checks(record):
    found = verdicts(record)
    assert found["prod has 4.96 times less bias than mse"] == "refined"
    assert found["distortion of a unit vector at 1, 2, 3, 4 bits"] == "refined"
    assert found["prod is unbiased"] == found["6,144 bytes become 768"] == "reproduced"
    assert found["an unbiased inner product takes two stages, mse and a sketch of one bit"] == "refined"
    assert found["recall above product quantization"] == "not tested"
    worse = tampered(record, "prod, 2 bits", status="FAIL")
    assert verdicts(worse)["prod is unbiased"] == "not reproduced"
    warned = tampered(
        record, "Qwen3.6-27B, 131,072 tokens: GiB of keys and values in bfloat16", status="WARN"
    )
    assert verdicts(warned)["GiB of keys and values of Qwen3.6-27B"] == "not reproduced"
    assert {row["verdict"] for row in claim_rows(record)} <= {
        "reproduced",
        "not reproduced",
        "refined",
        "not tested",
    }


def test_verdicts_in_short(record):
    worse = tampered(record, "prod, 2 bits", status="FAIL")
    whole, table, origin = verdicts_markdown(worse).split("\n\n")
    assert "6,144 bytes become 768 (review)" in whole
    assert "prod is unbiased" not in whole
    lines = table.splitlines()[2:]
    failed = [line for line in lines if line.startswith("| **not reproduced** | paper: ")]
    assert failed == lines[:2]
    assert failed[1].startswith("| **not reproduced** | paper: prod is unbiased | 1 |")
    assert len(lines) == sum(verdict != "reproduced" for verdict in verdicts(worse).values())
    assert record["created"][:10] in origin


def test_the_review_has_fourteen_rows(record):
    rows = reviewed_rows(record)
    assert [row["number"] for row in rows] == [str(n) for n in range(1, 15)]
    assert rows[0]["status"] == rows[6]["status"] == "PASS"
    assert rows[8]["status"] == "not run"
    worse = reviewed_rows(tampered(record, "chain, 2 bits", status="FAIL"))
    assert worse[3]["status"] == "FAIL"
    assert " 1 FAIL" in worse[3]["checks"]


def test_report_stands_alone(record, tmp_path):
    failed = at_most("Compression", "size <b>|[red]", 3, 2).as_row()
    gone = skipped("Attention", "the kernel", "there is no CUDA device").as_row()
    whole = record | {"checks": [*record["checks"], failed, gone]}
    paths = write_all_report(whole | {"counts": counts(Check(**r) for r in whole["checks"])}, tmp_path, "all")
    assert [path.name for path in paths] == ["all.md", "all.png", "all.html"]
    html, markdown = paths[2].read_text(), paths[0].read_text()
    assert html.count("data:image/png;base64,") >= 3
    assert not re.search(r"<script|<link|src=\"(?!data:)|url\(|https?://", html)
    assert "size &lt;b&gt;|[red]" in html
    assert "size <b>\\|[red]" in markdown
    assert "there is no CUDA device" in markdown
    assert claims_markdown(record).split("\n\n")[0] in markdown
    for text in (html, markdown):
        assert "4.96x" in text
        assert "fourteen" in text


def test_tables_are_made_of_the_record(record, tmp_path):
    (tmp_path / "all-tiny.json").write_text(json.dumps(record))
    assert render("claims.all-tiny", tmp_path) == claims_markdown(record)
    assert render("reviewed.all-tiny", tmp_path) == reviewed_markdown(record)
    assert render("verdicts.all-tiny", tmp_path) == verdicts_markdown(record)
    (tmp_path / "other.json").write_text(json.dumps(record | {"suite": "ann"}))
    with pytest.raises(BenchError, match="needs a record of all, got one of ann"):
        render("claims.other", tmp_path)


@pytest.fixture
def steps(monkeypatch):
    """Two steps that count their calls: one passes, the other does what `steps["second"]` says."""
    calls: dict = {"first": 0, "second": [at_least("B", "second", 1.0, 0.5)]}

    def first(_context):
        calls["first"] += 1
        return [at_least("A", "first", 1.0, 0.5)], None

    def second(_context):
        if isinstance(calls["second"], BaseException):
            raise calls["second"]
        return calls["second"], None

    monkeypatch.setattr(ann, "check_ann", second)
    monkeypatch.setattr("tqbench.everything.theory.check_theory", first)
    return calls


def small(tmp_path, **more):
    return AllOptions(only=("theory", "ann"), out=str(tmp_path), **more)


def test_a_run_goes_on_where_it_stopped(steps, tmp_path):
    steps["second"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        run.run_all(small(tmp_path))
    steps["second"] = [at_least("B", "second", 1.0, 0.5)]
    said: list[str] = []
    record = run.run_all(small(tmp_path), said.append)
    assert steps["first"] == 1
    assert [step["kept"] for step in record["steps"]] == [True, False]
    assert "kept from before" in said[1]
    assert run.run_all(small(tmp_path, fresh=True))["counts"]["PASS"] == 2
    assert run.run_all(small(tmp_path, seed=1))["steps"][0]["kept"] is False
    assert steps["first"] == 3


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (RuntimeError("out of\nmemory"), "FAIL", "RuntimeError: out of memory"),
        (BenchError("no such set"), "FAIL", "BenchError: no such set"),
        (ModuleNotFoundError("x", name="faiss"), "SKIP", "faiss is not installed"),
    ],
)
def test_a_step_that_breaks_is_one_check(steps, tmp_path, error, status, reason):
    steps["second"] = error
    record = run.run_all(small(tmp_path))
    assert record["counts"]["PASS"] == record["counts"][status] == 1
    assert record["checks"][1]["reason"].startswith(reason)
    steps["second"] = [at_least("B", "second", 1.0, 0.5)]
    assert run.run_all(small(tmp_path))["counts"]["PASS"] == 2  # tried again, not kept


@pytest.mark.parametrize(("value", "status"), [(1.0, 0), (0.1, 1)])
def test_exit_status(steps, tmp_path, value, status):
    steps["second"] = [at_least("B", "second", value, 0.5), skipped("C", "third", "not here")]
    arguments = ["bench", "all", "--only", "theory,ann", "--out", str(tmp_path), "--name", "n"]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == status, result.output
    assert f"{status} FAIL, 1 SKIP" in result.stdout
    assert "[2/2] ann" in result.stderr
    assert {"n.json", "n.md", "n.png", "n.html"} <= {path.name for path in tmp_path.iterdir()}


def test_bad_requests_are_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for arguments, message in (
        (["--only", "nothing"], f"only must be of {', '.join(STEPS)}, got nothing"),
        (["--repeats", "0"], "repeats must be at least 1, got 0"),
        (["--recall", "1.5"], "recall must be from 0 to 1, got 1.5"),
        (["--longbench-e"], "longbench_e needs longbench_dir, got none"),
        (
            ["--model-id", "nobody/nothing", "--local-files-only", "--only", "model"],
            "hf download nobody/nothing",
        ),
    ):
        result = CliRunner().invoke(cli, ["bench", "all", "--out", str(tmp_path), *arguments])
        assert result.exit_code == 2
        assert message in result.stderr
        assert len(result.stderr.splitlines()) == 1


def test_without_the_probe_its_steps_are_skipped(steps, tmp_path, monkeypatch):
    monkeypatch.setenv("TQ_PROBE", str(tmp_path / "absent"))
    record = run.run_all(AllOptions(only=("theory", "model", "needle"), out=str(tmp_path)))
    assert [row["status"] for row in record["checks"]] == ["PASS", "SKIP", "SKIP"]
    assert "lacks config.json" in record["checks"][1]["reason"]


def test_real_states_go_through_the_code(model_folder, tmp_path):
    """On a tiny model, whose keys and values are no worse than random vectors."""
    options = AllOptions(quick=True, model_id=str(model_folder), device="cpu", out=str(tmp_path))
    context = Context(options)
    row = divergence._errors(context.loaded.model, torch.arange(256)[None], 3.0)
    assert 0 < row["keys"] < 1.5 * row["theory"]
    assert 0 < row["values"] < 1.5 * row["theory"]


def test_memory_that_is_miscounted_fails(record, monkeypatch):
    made = json.loads(json.dumps(record["parts"]["memory"]))
    made["measured"][0]["measured"] += 1
    made["review"][0]["kv_gib"] = 2.5
    made["review"][1]["ratio_review_weights"] += 0.01
    context = Context(AllOptions())
    monkeypatch.setattr(context, "run", lambda *_, **__: made)
    checks, _ = memory.check_memory(context)
    assert [c.status for c in checks].count("FAIL") >= 2
    assert {c.status for c in checks if "as the review counts" in c.name} == {"PASS", "FAIL"}


def test_help_imports_nothing_heavy():
    code = (
        "import sys\n"
        "from tqcli.main import cli\n"
        "try: cli(['bench', 'all', '--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'numpy', 'matplotlib', 'rich', 'torch', 'tqcore'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    for option in (
        "--needle-bits",
        "--longbench-bits",
        "--pq-speedup",
        "--scalar-bits",
        "--repeats",
        "--warmup",
    ):
        assert option in done.stdout


def test_samples_are_in_longbench_format(tmp_path):
    folder = write_samples(tmp_path / "samples")
    assert {path.stem for path in folder.iterdir()} == set(SAMPLE_TASKS)
    for path in folder.iterdir():
        for line in path.read_text().splitlines():
            row = json.loads(line)
            assert set(row) == {
                *("input", "context", "answers", "length"),
                *("dataset", "language", "all_classes", "_id"),
            }
            assert row["dataset"] == path.stem
            assert row["answers"]
            assert row["length"] > 100
    rows = [json.loads(line) for line in (folder / "passage_count.jsonl").read_text().splitlines()]
    for row in rows:
        passages = [part.split(":\n")[1] for part in row["context"].split("\n\n")]
        assert row["answers"] == [str(len(set(passages)))] != [str(len(passages))]
    rows = [json.loads(line) for line in (folder / "passage_retrieval_en.jsonl").read_text().splitlines()]
    for row, word in zip(rows, ("lighthouse", "roots"), strict=True):
        (named,) = row["answers"]
        found = next(part for part in row["context"].split("\n\n") if part.startswith(f"{named}:"))
        assert word in found
    rows = [json.loads(line) for line in (folder / "trec.jsonl").read_text().splitlines()]
    assert all(row["answers"][0] in row["all_classes"] for row in rows)


@pytest.mark.gpu
def test_attention_is_timed_on_a_gpu():
    checks, part = attention.check_attention(Context(AllOptions(device="cuda", quick=True)))
    assert part is not None
    assert len(checks) == len(part["results"]) == 4
    assert all(row["us"] > 1 for row in part["results"])


def test_the_claims_page_is_made_of_its_record():
    root = Path(__file__).resolve().parents[2] / "benchmarks" / "results"
    assert tables_main([str(root / "claims.md"), "--results", str(root), "--check"]) == 0
    kept = {name: json.loads((root / f"all-{name}.json").read_text()) for name in ("cpu", "quick", "gpu")}
    for name, minutes in (("cpu", 20), ("quick", 3)):
        assert sum(step["seconds"] for step in kept[name]["steps"]) < 60 * minutes
        assert [step["name"] for step in kept[name]["steps"]] == list(STEPS)
        assert {c["group"] for c in kept[name]["checks"] if c["status"] == "SKIP"} == {attention.GROUP}
        assert kept[name]["settings"]["quick"] is (name == "quick")
    assert [record["counts"]["FAIL"] for record in kept.values()] == [0, 0, 0]
    assert kept["gpu"]["settings"]["device_name"] == "NVIDIA H200"
    assert [step["name"] for step in kept["gpu"]["steps"]] == list(STEPS)
    assert kept["gpu"]["counts"]["SKIP"] == 0
    assert verdicts(kept["cpu"])["prod has 4.96 times less bias than mse"] == "refined"


def test_the_page_of_the_gpu_index_is_made_of_its_records():
    root = Path(__file__).resolve().parents[2] / "benchmarks" / "results"
    assert tables_main([str(root / "gpu.md"), "--results", str(root), "--check"]) == 0
