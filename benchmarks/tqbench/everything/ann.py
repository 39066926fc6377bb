"""The index beside product quantization, on the two sets of the package."""

from __future__ import annotations

from typing import Any

from ..checks import Check, at_least, skipped
from .context import Context
from .quoted import PAPER, REVIEW

__all__ = ["check_ann"]

_METHODS = ("chain", "calibrated", "mse", "mse-scale", "sqtqmse", "pq", "flat")
_SLOW = {"sample": ("pq", "sqtqmse"), "sample-lm": ("sqtqmse",)}  # left out of a quick run
_WIDTHS = (1.0, 2.0, 4.0)
_LABELS = {"sample": "sentence embeddings", "sample-lm": "uncentred hidden states of a language model"}
_ONE_BIT = {"sample": 0.6, "sample-lm": 0.85}  # recall that the calibrated index must have
Rows = dict[tuple[str, float], dict[str, Any]]


def check_ann(context: Context) -> tuple[list[Check], dict[str, Any]]:
    """Recall and build time beside PQ, the 1-bit index, and the scalar code at its required bits."""
    from ..sources import SourceOptions
    from ..suites import run_ann

    o = context.options
    widths = tuple(sorted({*((1.0,) if o.quick else _WIDTHS), float(o.scalar_bits)}))
    records, checks = {}, []
    for source in _LABELS:
        records[source] = run_ann(
            source,
            SourceOptions(seed=o.seed),
            methods=tuple(m for m in _METHODS if not (o.quick and m in _SLOW[source])),
            bits=widths,
            repeats=o.repeats,
            memory=False,
        )
        checks += _judge(source, records[source], o)
    return checks, {"suite": "all-ann", "records": records}


def _judge(source: str, record: dict[str, Any], o: Any) -> list[Check]:
    group = f"Index: {_LABELS[source]}"
    rows: Rows = {(r["method"], r["bits"]): r for r in record["results"] if r["status"] == "ok"}
    recall = f"recall_{record['settings']['k']}_at_{record['settings']['k']}"
    absent = {
        r["bits"]: r["reason"] for r in record["results"] if r["method"] == "pq" and r["status"] != "ok"
    }
    checks = [skipped(group, f"{_bits(bits)}: recall and build time of PQ", absent[bits]) for bits in absent]
    for bits in sorted({b for _, b in rows if b < 32}):
        trained = rows.get(("pq", bits))
        if trained is None:
            continue
        checks += [
            _beside_pq(group, method, rows[method, bits], trained, recall)
            for method in ("chain", "calibrated")
        ]
        ours = rows["chain", bits]
        checks.append(
            at_least(
                group,
                f"{_bits(bits)}: build time of PQ over that of chain",
                _build(trained) / _build(ours),
                o.pq_speedup,
                paper=PAPER["index"] if bits == 4 else "",
                review=REVIEW["index"],
                reason=f"PQ {_build(trained):.3g} s, chain {_build(ours):.3g} s for {record['dataset']['n']:,} vectors",
            )
        )
    for method, limit in (("chain", 0.5), ("calibrated", _ONE_BIT[source])):
        checks.append(
            at_least(
                group,
                f"1 bit, {method}: recall 10@10",
                rows[method, 1.0][recall],
                limit,
                review=REVIEW["one bit"] if source == "sample-lm" else "",
                reason=f"the paper's mse: {rows['mse', 1.0][recall]:.3f}",
            )
        )
    bits = float(o.scalar_bits)
    # The paper's code reads data as it is; ours has its scale
    checks.append(
        at_least(
            group,
            f"scalar code with our scale at its required {_bits(bits)}: recall 10@10",
            rows["mse-scale", bits][recall],
            o.recall,
            review=REVIEW["scalar"],
            reason=f"without the scale {rows['mse', bits][recall]:.3f}",
        )
    )
    return checks


def _beside_pq(group: str, method: str, ours: dict[str, Any], trained: dict[str, Any], recall: str) -> Check:
    """Recall less that of PQ trained on the base itself; the oblivious chain may lose where data is not centred."""
    return at_least(
        group,
        f"{_bits(ours['bits'])}, {method}: recall 10@10 less that of PQ",
        ours[recall] - trained[recall],
        0.0,
        warn=-0.05,
        paper=PAPER["recall"],
        review=REVIEW["recall"],
        reason=f"{ours[recall]:.3f} in {ours['bytes_per_vector']:.0f} bytes, PQ {trained[recall]:.3f} in "
        f"{trained['bytes_per_vector']:.0f}",
    )


def _build(row: dict[str, Any]) -> float:
    return max(1e-6, row["train_seconds"] + row["add_seconds"])


def _bits(bits: float) -> str:
    return "1 bit" if bits == 1 else f"{bits:g} bits"
