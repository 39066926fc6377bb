"""The speed suite's arithmetic: ratios, matches and limits of records made by hand."""

from __future__ import annotations

from typing import Any

import pytest

from tqbench.methods import METHODS, Case
from tqbench.speed.cells import _keep_narrowest, _Running
from tqbench.speed.limits import SCAN_COSTS
from tqbench.speed.matching import match_summaries, matches
from tqbench.speed.standing import code_bytes, shares, standings, summaries
from tqbench.speed.tables import match_summary_table


def made_record(rows, qps, **limits):
    """One cell by hand: rows of (method, family, recall), queries/s by method."""
    methods = [
        {
            "method": name,
            "label": name,
            "family": family,
            "status": "ok",
            "bytes_per_vector": 100.0,
            "recall_10_at_10": recall,
        }
        for name, family, recall in rows
    ]
    cell = {"nq": 1, "k": 10, "threads": 1, "qps": {name: [v, v, v] for name, v in qps.items()}}
    group = {"set": "real", "n": 1600, "d": 64, "bits": 4, "methods": methods, "cells": [cell]}
    return {"results": [group], "limits": limits}


def test_ratios_by_hand():
    rows = [
        ("chain", "tqann", 0.90),
        ("calibrated", "tqann", 0.95),
        ("quick", "x", 0.60),
        ("near", "x", 0.896),
        ("exact", "x", 0.99),
    ]
    qps = {"chain": 200.0, "calibrated": 100.0, "quick": 400.0, "near": 100.0, "exact": 10.0}
    oblivious, calibrated = standings(made_record(rows, qps))
    assert (oblivious.fastest.label, oblivious.ratio) == ("quick", 0.5)
    assert (oblivious.equal.label, oblivious.equal_ratio) == ("near", 2.0)
    assert (calibrated.fastest.label, calibrated.ratio) == ("quick", 0.25)
    assert (calibrated.equal.label, calibrated.equal_ratio) == ("exact", 10.0)
    first, second = summaries([oblivious, calibrated])
    assert (first.cells, first.median, first.leads, first.outfound, first.unmatched) == (1, 0.5, 0, 0, 0)
    assert (second.equal_median, second.equal_leads) == (10.0, 1)


def test_a_rival_that_finds_more_is_told_and_none_is_told():
    rows = [("chain", "tqann", 0.90), ("better", "x", 0.93)]
    record = made_record(rows, {"chain": 50.0, "better": 100.0})
    (one,) = standings(record)
    assert summaries([one])[0].outfound == 1
    rows = [("chain", "tqann", 0.90), ("worse", "x", 0.80)]
    (alone,) = standings(made_record(rows, {"chain": 50.0, "worse": 100.0}))
    assert alone.equal is None
    assert alone.equal_ratio is None
    (summary,) = summaries([alone])
    assert (summary.unmatched, summary.equal_median) == (1, None)


def test_matches_take_any_width_of_ours():
    rows = [("chain", "tqann", 0.90), ("fast", "x", 0.80), ("slow", "x", 0.99)]
    record = made_record(rows, {"chain": 50.0, "fast": 100.0, "slow": 1.0})
    (narrow,) = made_record([("calibrated", "tqann", 0.85)], {"calibrated": 150.0})["results"]
    narrow["bits"], narrow["methods"][0]["bytes_per_vector"] = 2, 50.0
    record["results"].append(narrow)
    (match,) = matches(record)
    assert (match.bits, match.rival, match.ours, match.ratio) == (4, "fast", "calibrated at 2 bits", 1.5)
    narrow["methods"][0]["recall_10_at_10"] = 0.7
    assert matches(record)[0].ours == "chain at 4 bits"
    record["results"][0]["methods"][0]["bytes_per_vector"] = 101.0
    assert (matches(record)[0].ours, matches(record)[0].ratio) == (None, None)


def test_rows_with_bits_are_compared_inside_their_group():
    rows = [("chain", "tqann", 0.90), ("chain-3.5", "tqann", 0.85), ("fast", "x", 0.80), ("slow", "x", 0.95)]
    record = made_record(rows, {"chain": 50.0, "chain-3.5": 90.0, "fast": 100.0, "slow": 1.0})
    (other,) = made_record([("calibrated", "tqann", 0.99)], {"calibrated": 500.0})["results"]
    record["results"].append(other)
    other["bits"] = 2
    assert matches(record)[0].ours == "calibrated at 2 bits"
    assert "only the rivals' widths" in match_summary_table(record).title
    for row, bits in zip(record["results"][0]["methods"], (4, 3.5, 4, 4), strict=True):
        row["bits"] = bits
    (match,) = matches(record)
    assert (match.ours, match.ratio) == ("chain-3.5 at 3.5 bits", 0.9)
    oblivious, calibrated = match_summaries(record)
    assert (oblivious.cells, oblivious.median, oblivious.leads, oblivious.unmatched) == (1, 0.9, 0, 0)
    assert (calibrated.cells, calibrated.median, calibrated.unmatched) == (1, None, 1)
    assert match_summary_table(record).rows == [
        ("tqann oblivious", "1", "x0.90", "x0.90", "0 of 1", "0"),
        ("tqann calibrated", "1", "-", "-", "0 of 1", "1"),
    ]
    record["results"].pop()
    assert [s.label for s in match_summaries(record)] == ["tqann oblivious"]


def test_shares_by_hand():
    size = code_bytes(1600, 64, 4)
    limits = {
        "read_gb_s": 10.0,
        "same_size_gb_s": {str(size): 20.0},
        "clock_ghz": 1.0,
        "simd": "avx512",
    }
    record = made_record([("chain", "tqann", 0.9)], {"chain": 5e9 / size}, **limits)
    (share,) = shares(record)
    assert share.gb_s == pytest.approx(5)
    assert share.memory == pytest.approx(0.5)
    assert share.same_size == pytest.approx(0.25)
    assert share.instructions == pytest.approx(5e9 / 64 * 3.5 / 1e9)
    record["limits"]["simd"] = "scalar"
    assert shares(record)[0].instructions is None


@pytest.mark.parametrize(
    ("n", "d", "bits", "expected"),
    [(1, 64, 4, 512), (16, 64, 4, 512), (17, 64, 4, 1024), (100_000, 1536, 4, 76_800_000), (16, 9, 1, 64)],
)
def test_bytes_that_a_scan_reads(n, d, bits, expected):
    assert code_bytes(n, d, bits) == expected


def test_scan_costs_are_at_least_two_lookups_and_two_products():
    for (level, _), cost in SCAN_COSTS.items():
        assert cost.instructions > cost.vector >= 4, level
        assert cost.cycles >= cost.vector / cost.ports


def running(recall, size):
    row = {"recall_10_at_10": recall, "bytes_per_vector": size}
    no_host: Any = None
    return _Running(Case(METHODS["chain"], 4), no_host, row, 1.0)


@pytest.mark.parametrize(
    ("recalls", "kept", "built"),
    [
        ((0.95, 0.92, 0.85, 0.7, 0.6), {3, 2.5}, 4),
        ((0.95, 0.92, 0.91, 0.7, 0.6), {2.5}, 4),
        ((0.75, 0.7, 0.6, 0.5, 0.4), set(), 1),
        ((0.85, None, 0.82, 0.81, 0.8), {1.5}, 5),
    ],
)
def test_the_narrowest_for_each_rival_are_kept(recalls, kept, built):
    rivals = [running(0.9, 110.0), running(0.8, 100.0), running(0.85, 10.0)]
    widths = [Case(METHODS["chain"], bits) for bits in (3.5, 3, 2.5, 2, 1.5)]
    found = {case.bits: recall for case, recall in zip(widths, recalls, strict=True)}
    held, tried = {}, []

    def start(case):
        tried.append(case)
        if found[case.bits] is None:
            return None
        held[case.bits] = running(found[case.bits], 30 * case.bits)
        return held[case.bits]

    def stop(one):
        del held[next(bits for bits in held if held[bits] is one)]

    _keep_narrowest(rivals, widths, start, stop)
    assert set(held) == kept
    assert len(tried) == built
