"""LongBench from the packed cache beside full precision: its files, or a miniature in its format."""

from __future__ import annotations

import tempfile
from typing import Any

from ..checks import Check, at_least
from ..kv.longbench.scores import AVERAGE, FULL
from .context import Context
from .quoted import PAPER, REVIEW
from .samples import write_samples

__all__ = ["check_longbench", "judge"]

GROUP = "LongBench"
_POINTS = 1.0  # of a hundred that may be lost however narrow the interval is
_LEAST = 0.01  # of a mean: nothing beside nothing is no pass
_MARGINAL = 2.5  # bits
_QUICK = ("hotpotqa", "multi_news", "passage_count", "passage_retrieval_en")  # whose answers are short here
Row = dict[str, Any]


def check_longbench(context: Context) -> tuple[list[Check], Row]:
    """Mean score at the required bits and at 2.5 beside full precision."""
    o = context.options
    bits = tuple(dict.fromkeys((o.longbench_bits,) if o.quick else (_MARGINAL, o.longbench_bits)))
    if o.longbench_dir:
        chosen = {"data_dir": o.longbench_dir, "longbench_e": o.longbench_e, "samples": o.longbench_examples}
        record = context.run("longbench", bits=bits, **chosen)
        files = "LongBench-E's files" if o.longbench_e else "LongBench's files"
        return judge(record["results"], o.longbench_bits, files), record
    with tempfile.TemporaryDirectory() as folder:
        few = {"tasks": _QUICK, "samples": 1} if o.quick else {}
        record = context.run("longbench", data_dir=str(write_samples(folder)), bits=bits, **few)
    return judge(record["results"], o.longbench_bits, "a miniature in its format"), record


def judge(rows: list[Row], required: float, what: str) -> list[Check]:
    """The mean over tasks, and every task at the required bits, which alone may warn and not fail."""
    rows = [row for row in rows if row["bucket"] is None]
    full = {row["task"]: row for row in rows if row["cache"] == FULL}
    checks = []
    for row in rows:
        bits = row["cache"].rpartition("-")[2]
        mean = row["task"] == AVERAGE or len(full) == 1
        if row["cache"] == FULL or not (mean or float(bits) == required):
            continue
        usual = full[row["task"]]["score"]
        low = row["difference_low"]
        slack = max(_POINTS, 0.0 if low is None else row["difference"] - low)
        checks.append(
            at_least(
                GROUP,
                f"{row['cache']}: {'mean score' if mean else 'score'}, {what if mean else row['task']}",
                row["score"],
                max(_LEAST if mean else 0.0, usual - slack),
                warn=max(0.0, usual - 2 * slack) if mean else 0.0,
                theory=usual,
                paper=PAPER[f"longbench-{bits}"] if mean and f"longbench-{bits}" in PAPER else "",
                review=REVIEW["longbench"] if mean and float(bits) == required else "",
                reason=f"theory: full precision; {row['n']} examples; the limit is the paired 95% interval, or a point",
            )
        )
    return checks
