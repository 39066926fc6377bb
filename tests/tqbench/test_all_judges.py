"""How `tq bench all` judges what its steps measure."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from tqbench.everything import ann, attention, divergence, longbench, needle, throughput
from tqbench.everything.context import Context
from tqbench.everything.options import AllOptions
from tqbench.everything.verdicts import claim_rows
from tqbench.kv.needle import cells


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


def test_nothing_beside_nothing_is_no_pass():
    shared = {
        "bucket": None,
        "n": 8,
        "task": "average",
        "score": 0.0,
        "difference": 0.0,
        "difference_low": 0.0,
    }
    (check,) = longbench.judge(
        [shared | {"cache": cache} for cache in ("full", "chain-3.5")], 3.5, "examples"
    )
    assert check.status == "WARN"


@pytest.mark.parametrize(
    ("given", "asked", "named"),
    [
        ({}, {"bits": (2.5, 3.5)}, "a miniature in its format"),
        ({"quick": True}, {"samples": 1, "bits": (3.5,)}, "a miniature in its format"),
        ({"longbench_dir": "lb"}, {"data_dir": "lb", "samples": 6}, "LongBench's files"),
        ({"longbench_dir": "lb", "longbench_e": True}, {"longbench_e": True}, "LongBench-E's files"),
    ],
)
def test_longbench_takes_its_files_or_the_miniature(given, asked, named, monkeypatch):
    shared = {"task": "lcc", "bucket": None, "n": 8, "score": 30.0, "difference": 0.0, "difference_low": 0.0}
    context, seen = Context(AllOptions(**given)), {}

    def found(_suite, **more):
        seen.update(more)
        return {"results": [shared | {"cache": cache} for cache in ("full", "chain-3.5")]}

    monkeypatch.setattr(context, "run", found)
    ((check,), _) = longbench.check_longbench(context)
    assert (check.name, check.status) == (f"chain-3.5: mean score, {named}", "PASS")
    assert asked.items() <= seen.items()


@pytest.mark.parametrize(
    ("full", "found", "verdict"),
    [(40.0, 39.5, "reproduced"), (40.0, 20.0, "not reproduced"), (2.0, 2.0, "not tested")],
)
def test_a_model_that_answers_nothing_proves_nothing(full, found, verdict):
    shared = {"bucket": None, "n": 8, "task": "average", "difference_low": 0.0}
    rows = [shared | {"cache": "full", "score": full, "difference": 0.0}]
    rows.append(shared | {"cache": "chain-3.5", "score": found, "difference": found - full})
    made = [check.as_row() for check in longbench.judge(rows, 3.5, "LongBench's files")]
    verdicts = {row["claim"]: row for row in claim_rows({"checks": made})}
    row = verdicts["LongBench scores at 3.5 bits as in full precision"]
    assert row["verdict"] == verdict
    assert ("--longbench-dir" in row["note"]) == (verdict == "not tested")
