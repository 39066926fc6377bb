"""A whole run on small vectors: rows, order of work, skipped methods, records, reports and tables."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from tqbench.display import print_record
from tqbench.errors import BenchError, Unavailable
from tqbench.methods import METHODS, expand
from tqbench.records import read_record, read_records, write_record
from tqbench.report import write_report
from tqbench.sources import SourceOptions
from tqbench.standing import standings
from tqbench.suites import run_ann
from tqbench.tables import main as tables_main
from tqbench.tables import render

pytest.importorskip("faiss", reason="the baselines need faiss-cpu")
OK_KEYS = {
    "recall_1_at_1",
    "recall_1_at_10",
    "recall_10_at_10",
    "bytes_per_vector",
    "resident_bytes",
    "train_seconds",
    "add_seconds",
    "latency_ms_p50",
    "latency_ms_p99",
    "qps_1_thread",
    "qps_all_threads",
}


@pytest.fixture(scope="module")
def record():
    names = ("chain", "mse", "flat", "sqtqmse", "eden", "rabitq-fs", "pq", "pq-fs", "sq")
    options = SourceOptions(d=32, n=400, nq=30)
    return run_ann("synthetic", options, methods=names, bits=(1.5, 2, 4), repeats=2, threads=2, quiet=True)


def rows_of(record, method):
    return {row["bits"]: row for row in record["results"] if row["method"] == method}


def test_every_row_is_complete(record):
    for row in record["results"]:
        assert row["status"] == "ok", row
        assert set(row) >= OK_KEYS
        assert 0 <= row["recall_1_at_1"] <= row["recall_1_at_10"] <= 1
        assert row["qps_1_thread"] > 0
        assert row["latency_ms_p50"] <= row["latency_ms_p99"]


def test_the_exact_index_is_exact(record):
    assert rows_of(record, "flat")[32]["recall_10_at_10"] == 1


def test_bytes_by_formula(record):
    assert rows_of(record, "flat")[32]["bytes_per_vector"] == 128
    for bits in (2, 4):
        code = 32 * bits / 8
        assert rows_of(record, "pq")[bits]["bytes_per_vector"] == code
        assert rows_of(record, "pq-fs")[bits]["bytes_per_vector"] == code
        assert rows_of(record, "sqtqmse")[bits]["bytes_per_vector"] == code
        assert rows_of(record, "eden")[bits]["bytes_per_vector"] == code + 8
        assert rows_of(record, "chain")[bits]["bytes_per_vector"] == code + 4


def test_more_bits_find_more(record):
    for method in ("chain", "mse", "pq", "eden"):
        rows = rows_of(record, method)
        assert rows[4]["recall_10_at_10"] > rows[2]["recall_10_at_10"]


def test_record_has_its_origin(record):
    assert record["suite"] == "ann"
    assert record["machine"]["cores"] >= 1
    assert "numpy" in record["versions"]
    assert record["settings"]["threads"] == 2
    assert record["dataset"]["d"] == 32
    assert {"created", "command", "commit"} <= set(record)


def test_record_round_trip(record, tmp_path):
    path = write_record(record, tmp_path / "new")
    assert read_record(path) == json.loads(json.dumps(record))
    assert list(read_records(tmp_path / "new")) == [path.stem]
    path.write_text('{"format": 99, "suite": "ann"}')
    with pytest.raises(BenchError, match="format 99"):
        read_record(path)
    path.write_text("[1]")
    with pytest.raises(BenchError, match="is not a record"):
        read_record(path)


def test_report_is_self_contained(record, tmp_path):
    pytest.importorskip("matplotlib")
    png, page = write_report(record, tmp_path, "r")
    assert png.read_bytes().startswith(b"\x89PNG")
    assert png.stat().st_size > 30_000
    text = page.read_text()
    assert not re.search(r"(?:src|href)=\"(?!data:)", text)
    assert not re.search(r"url\(|@import|<script|<link", text)
    assert "data:image/png;base64," in text
    for row in record["results"]:
        assert row["label"] in text


def test_skipped_rows_reach_every_output(record, tmp_path):
    from rich.console import Console

    odd = {**record, "results": [*record["results"], skipped_row()]}
    assert "skipped, because &lt;d&gt; is odd" in write_report(odd, tmp_path)[1].read_text()
    with (tmp_path / "out.txt").open("w") as file:
        print_record(odd, Console(file=file, width=140))
    printed = (tmp_path / "out.txt").read_text()
    assert "skipped" in printed
    assert "2 bits, tqann chain: recall" in printed


def skipped_row():
    return {
        "method": "opq",
        "label": "FAISS OPQ+PQ",
        "family": "opq",
        "bits": 2,
        "trains_on": "base",
        "status": "skipped",
        "reason": "because <d> is odd",
    }


def test_standing_says_who_leads(record):
    lines = standings(record)
    assert [line.split(",")[0] for line in lines] == ["1.5 bits", "2 bits", "4 bits"]
    assert all(re.search(r"recall \d\.\d+ (leads|behind|level)", line) for line in lines)


def test_a_method_that_cannot_run_is_skipped_with_its_reason():
    options = SourceOptions(d=9, n=100, nq=5, metric="l2")
    record = run_ann(
        "synthetic",
        options,
        methods=("pq", "pq-fs", "chain", "turbovec"),
        bits=(2,),
        repeats=1,
        memory=False,
        quiet=True,
    )
    status = {row["method"]: (row["status"], row.get("reason", "")) for row in record["results"]}
    assert status["chain"][0] == "ok"
    assert status["pq-fs"] == (
        "skipped",
        "no equal split of d = 9 with codes of at most 4 bits spends 2 bits",
    )
    assert status["turbovec"][0] == "skipped"


def test_held_out_training_uses_other_rows(monkeypatch):
    from tqbench.adapters.faiss_indexes import FaissIndex

    seen = []
    train = FaissIndex.train
    monkeypatch.setattr(FaissIndex, "train", lambda self, x: (seen.append(x.copy()), train(self, x)))
    options = SourceOptions(d=16, n=300, nq=5)
    run_ann(
        "synthetic", options, methods=("pq", "pq-held-out"), bits=(2,), repeats=1, memory=False, quiet=True
    )
    base, held_out = seen
    assert base.shape == held_out.shape
    assert not np.array_equal(base, held_out)


@pytest.mark.parametrize(
    ("d", "bits", "expected"),
    [(384, 1, (48, 8)), (384, 3, (192, 6)), (384, 4, (192, 8)), (384, 0.5, (24, 8)), (200, 2.5, (100, 5))],
)
def test_product_quantizers_spend_the_same_bytes(d, bits, expected):
    from tqbench.adapters.faiss_indexes import subspaces

    m, nbits = subspaces(d, bits)
    assert (m, nbits) == expected
    assert m * nbits == d * bits
    with pytest.raises(Unavailable):
        subspaces(97, 2)


def test_cases_by_width():
    groups = expand((), (2, 4))
    assert [group[0].bits for group in groups] == [32, 2, 4]
    assert {case.method.name for case in groups[1]} >= {"chain", "pq", "sqtqmse", "eden", "turbovec"}
    assert "opq" not in {case.method.name for group in groups for case in group}
    assert "pq" not in {case.method.name for group in expand((), (2,), quick=True) for case in group}
    assert len(expand(("all",), (2,))[1]) == sum(2 in method.bits for method in METHODS.values())
    with pytest.raises(BenchError, match="methods must be among"):
        expand(("nothing",))
    with pytest.raises(BenchError, match=r"bits 2\.25 is offered by none"):
        expand(("chain",), (2.25,))


def test_tables_follow_the_records(record, tmp_path, capsys):
    results = tmp_path / "results"
    write_record(record, results, "small")
    readme = tmp_path / "README.md"
    blocks = "".join(f"<!-- table:{kind}.small -->\nold\n<!-- /table:{kind}.small -->\n" for kind in KINDS)
    readme.write_text(f"# Title\n{blocks}end\n")
    arguments = [str(readme), "--results", str(results)]
    assert tables_main([*arguments, "--check"]) == 1
    assert "differ" in capsys.readouterr().err
    assert tables_main(arguments) == 0
    assert tables_main([*arguments, "--check"]) == 0
    text = readme.read_text()
    assert "old" not in text
    assert "**tqann chain**" in text
    assert text.endswith("end\n")


KINDS = ("headline", "comparison", "recall", "standing")


def test_unknown_tables_are_named(tmp_path):
    with pytest.raises(BenchError, match="table must be KIND"):
        render("pie.small", tmp_path)
    assert render("headline", tmp_path) == ""
    with pytest.raises(BenchError, match="no record 'small'"):
        render("recall.small", tmp_path)


def test_memory_growth_is_close_to_the_bytes():
    from tqbench.memory import MemoryMeter
    from tqbench.methods import Case

    base = np.random.default_rng(0).standard_normal((20000, 64), dtype=np.float32)
    with MemoryMeter(base, "ip") as meter:
        grown = meter.growth(Case(METHODS["flat"], 32.0), None)
    if grown is None:
        pytest.skip("this system does not tell resident memory")
    assert grown == pytest.approx(base.nbytes, rel=0.1)


def test_a_worker_process_gives_the_same_answers():
    from tqbench.hosts import InProcess, InWorkers
    from tqbench.methods import Case
    from tqbench.timing import build_seconds, found_ids

    base = np.random.default_rng(0).standard_normal((200, 16), dtype=np.float32)
    case = Case(METHODS["chain"], 4.0)
    here, there = InProcess(case, 16, "ip", 2), InWorkers(case, 16, "ip", 2)
    try:
        for host in (here, there):
            assert min(host.build(build_seconds, base, base)) >= 0
        expected = here.call(found_ids, base[:5], 3, threads=1)
        for threads in (1, 2):
            np.testing.assert_array_equal(there.call(found_ids, base[:5], 3, threads=threads), expected)
        with pytest.raises(RuntimeError, match=r"x must|xq"):
            there.call(found_ids, base[:, :3], 3, threads=1)
    finally:
        there.close()


def test_readme_tables_are_those_of_the_records(request):
    root = request.config.rootpath
    readme, results = root / "README.md", root / "benchmarks" / "results"
    if not readme.is_file():
        pytest.skip("not a checkout")
    assert tables_main([str(readme), "--results", str(results), "--check"]) == 0
