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
from tqbench.everything import ann, attention, divergence, longbench, memory, needle, run, throughput
from tqbench.everything.context import Context
from tqbench.everything.options import STEPS, AllOptions
from tqbench.everything.report import claims_markdown, reviewed_markdown, write_all_report
from tqbench.everything.samples import SAMPLE_TASKS, write_samples
from tqbench.everything.verdicts import claim_rows, reviewed_rows
from tqbench.kv.needle import cells
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


def answers(cache, right, n=10):
    shared = {"cache": cache, "task": "single", "length": 1024, "depth": 0.5}
    return [shared | {"exact": i < right, "recall": 1, "in_codes": 1, "effective_bits": 0} for i in range(n)]


@pytest.mark.parametrize(("right", "status"), [(10, "PASS"), (8, "PASS"), (7, "WARN"), (3, "FAIL")])
def test_needles_are_judged_by_the_interval_of_full_precision(right, status, monkeypatch):
    rows = [*answers("full", 10), *answers("chain-3.5", right), *answers("chain-2", 6), *answers("mse-2", 7)]
    context = Context(AllOptions())
    asked = {("chain",): [r for r in rows if r["cache"] != "mse-2"], ("mse",): rows}

    def found(_suite, *, code, **_more):
        kept = [r for r in asked[code] if code == ("chain",) or not r["cache"].startswith("chain")]
        return {"results": cells(kept)}

    monkeypatch.setattr(context, "run", found)
    checks, _ = needle.check_needle(context)
    alone = "WARN" if status == "FAIL" else status  # a task by itself does not fail
    assert [c.status for c in checks] == ["PASS", status, alone, "FAIL"]
    assert checks[1].value == right / 10
    assert checks[1].theory == 1
    assert "low end of its 95% interval" in checks[1].reason


def test_only_the_first_call_of_a_suite_begins_anew(monkeypatch):
    asked = []

    class Suite:
        @staticmethod
        def run(options):
            asked.append((options.suite, options.fresh))
            return {}

    monkeypatch.setattr("tqbench.everything.context.load_suite", lambda _name: Suite)
    context = Context(AllOptions(fresh=True))
    for suite in ("needle", "needle", "memory"):
        context.run(suite)
    assert asked == [("needle", True), ("needle", False), ("memory", True)]


def ann_record(**recalls):
    def row(method, bits):
        recall = recalls.get(f"{method.replace('-', '_')}_{bits}", 0.95)
        seconds = {"pq": 3.0}.get(method, 0.1)
        shared = {"method": method, "bits": float(bits), "status": "ok", "bytes_per_vector": 52.0}
        return shared | {"recall_10_at_10": recall, "train_seconds": 0.0, "add_seconds": seconds}

    methods = ("chain", "calibrated", "mse", "mse-scale", "pq")
    return {
        "settings": {"k": 10},
        "dataset": {"n": 10},
        "results": [row(method, bits) for bits in (1, 4) for method in methods],
    }


def test_the_index_is_judged_beside_pq():
    def judged(options=None, **recalls):
        return {c.name: c for c in ann._judge("sample-lm", ann_record(**recalls), options or AllOptions())}

    found = judged()
    assert {c.status for c in found.values()} == {"PASS"}
    assert found["1 bit: build time of PQ over that of chain"].value == pytest.approx(30)
    found = judged(chain_1=0.92, calibrated_1=0.8, mse_scale_4=0.89)
    assert found["1 bit, chain: recall 10@10 less that of PQ"].status == "WARN"
    assert found["1 bit, calibrated: recall 10@10 less that of PQ"].status == "FAIL"
    assert found["1 bit, calibrated: recall 10@10"].status == "FAIL"
    assert found["scalar code with our scale at its required 4 bits: recall 10@10"].status == "FAIL"
    found = judged(AllOptions(pq_speedup=40.0, scalar_bits=1, recall=0.99))
    assert found["4 bits: build time of PQ over that of chain"].status == "FAIL"
    assert found["scalar code with our scale at its required 1 bit: recall 10@10"].status == "FAIL"


def test_without_faiss_the_comparison_with_pq_is_skipped():
    made = ann_record()
    for row in made["results"]:
        if row["method"] == "pq":
            row.update(status="skipped", reason="faiss is not installed")
    checks = ann._judge("sample", made, AllOptions())
    assert [c.name for c in checks if c.status == "SKIP"] == [
        "1 bit: recall and build time of PQ",
        "4 bits: recall and build time of PQ",
    ]
    assert {c.status for c in checks} == {"PASS", "SKIP"}


def divergences(**changed):
    def row(code, bits, value):
        value = changed.get(f"{code}_{bits:g}".replace(".", "_"), value)
        shared = {
            "code": code,
            "bits": bits,
            "divergence": value,
            "agreement": changed.get("agreement", 0.95),
        }
        return shared | {"loss": 2.7, "full_loss": 2.69, "effective_bits": bits + 0.125}

    rows = [row("chain", b, 1.6 * 4**-b) for b in (3.0, 3.5)] + [row("mse", b, 4 * 4**-b) for b in (3.0, 3.5)]
    errors = [
        {"bits": b, "theory": 0.02, "keys": changed.get("keys", 0.01), "values": 0.019} for b in (3.0, 3.5)
    ]
    return {c.name: c.status for c in divergence.judge(rows, errors, Context(AllOptions()))}


@pytest.mark.parametrize(
    ("changed", "name", "status"),
    [
        ({"keys": 0.03}, "3 bits: relative squared error of real keys", "FAIL"),
        ({"chain_3_5": 0.05}, "chain, 3.5 bits: divergence of the logits", "WARN"),
        ({"chain_3_5": 0.08}, "chain, 3.5 bits: divergence of the logits", "FAIL"),
        ({"mse_3": 0.04}, "3 bits: divergence of the paper's mse over that of chain", "WARN"),
        ({"mse_3": 0.03}, "3 bits: divergence of the paper's mse over that of chain", "FAIL"),
        ({"mse_3_5": 0.02}, "divergence of chain at 3 bits over that of mse at 3.5", "FAIL"),
        ({"agreement": 0.87}, "chain, 3.5 bits: agreement of the most likely token", "WARN"),
        ({"agreement": 0.8}, "chain, 3.5 bits: agreement of the most likely token", "FAIL"),
    ],
)
def test_divergence_is_judged(changed, name, status):
    assert set(divergences().values()) == {"PASS"}
    assert divergences(**changed)[name] == status


def test_real_states_go_through_the_code(model_folder, tmp_path):
    """On a tiny model, whose keys and values are no worse than random vectors."""
    options = AllOptions(quick=True, model_id=str(model_folder), device="cpu", out=str(tmp_path))
    context = Context(options)
    row = divergence._errors(context.loaded.model, torch.arange(256)[None], 3.0)
    assert 0 < row["keys"] < 1.5 * row["theory"]
    assert 0 < row["values"] < 1.5 * row["theory"]


@pytest.mark.parametrize(("ratio", "status"), [(1.2, "PASS"), (0.7, "WARN"), (0.1, "FAIL")])
def test_speed_has_a_bar_on_a_gpu_alone(ratio, status):
    rows = [
        {"cache": "full", "tokens": 1024, "tokens_per_second": 50.0},
        {"cache": "chain-2", "tokens": 1024, "tokens_per_second": 50.0 * ratio},
    ]
    (check,) = throughput.judge(rows, on_gpu=True)
    assert (check.status, check.value, check.review) == (status, ratio, "0.75 of full precision")
    (check,) = throughput.judge(rows, on_gpu=False)
    assert (check.status, check.threshold) == ("PASS", "none: for information on a processor")


def test_attention_is_skipped_without_a_gpu_and_judged_on_one():
    ((check,), part) = attention.check_attention(Context(AllOptions(device="cpu")))
    assert (check.status, part) == ("SKIP", None)
    assert "no CUDA device" in check.reason
    shape = {"heads": 32, "kv_heads": 8, "d": 128, "tokens": 8192, "bits": 2.0, "backend": "flash gqa"}
    found = attention.judge([shape | {"us": us, "full_us": 95.0} for us in (90.0, 100.0, 110.0)])
    assert [c.status for c in found] == ["PASS", "WARN", "FAIL"]


@pytest.mark.parametrize(
    ("score", "low", "status"),
    [
        (30.0, -0.1, "PASS"),
        (29.1, -0.9, "PASS"),
        (25.0, -10.5, "PASS"),
        (28.5, -1.6, "WARN"),
        (20.0, -10.5, "FAIL"),
    ],
)
def test_longbench_is_judged_by_the_paired_interval(score, low, status):
    shared = {"bucket": None, "n": 8, "task": "average"}
    rows = [shared | {"cache": "full", "score": 30.0, "difference": 0.0, "difference_low": 0.0}]
    rows.append(
        shared | {"cache": "chain-3.5", "score": score, "difference": score - 30, "difference_low": low}
    )
    (check,) = longbench.judge(rows, 3.5, "examples")
    assert (check.status, check.value, check.theory) == (status, score, 30)
    assert (check.paper[:5], bool(check.review)) == ("50.06", True)


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
    kept = json.loads((root / "all-cpu.json").read_text())
    assert kept["counts"]["FAIL"] == 0
    assert kept["settings"]["quick"] is False
    assert sum(step["seconds"] for step in kept["steps"]) < 20 * 60
    assert verdicts(kept)["prod has 4.96 times less bias than mse"] == "refined"
