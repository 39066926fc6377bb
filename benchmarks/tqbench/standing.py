"""Where our default code stands at each width, in words, from a record alone."""

from __future__ import annotations

from typing import Any

__all__ = ["OURS", "standings", "width_name"]

OURS = ("chain", "calibrated")


def width_name(bits: float) -> str:
    """The width in words."""
    return "1 bit" if bits == 1 else f"{bits:g} bits"


def standings(record: dict[str, Any]) -> list[str]:
    """One line per width and code of `OURS`: recall, speed and build time against the best rival in each."""
    lines = []
    for bits in dict.fromkeys(row["bits"] for row in record["results"]):
        rows = [r for r in record["results"] if r["bits"] == bits and r["status"] == "ok"]
        rivals = [r for r in rows if r["family"] != "tqann"]
        for name in OURS:
            ours = next((r for r in rows if r["method"] == name), None)
            if ours is not None and rivals:
                lines.append(_line(ours, rivals, record["settings"]["k"]))
    return lines


def _line(ours: dict[str, Any], rivals: list[dict[str, Any]], k: int) -> str:
    parts = [
        _recall(ours, rivals, f"recall_{k}_at_{k}"),
        _ratio(ours, rivals, "queries/s", lambda r: r["qps_all_threads"]),
        _ratio(ours, rivals, "one query", lambda r: 1 / r["latency_ms_p50"]),
        _ratio(ours, rivals, "build", _build_speed),
    ]
    trained = next((r for r in rivals if r["method"] == "pq"), None)
    if trained is not None:
        parts.append(f"build x{_build_speed(ours) / _build_speed(trained):,.0f} of {trained['label']}")
    return f"{width_name(ours['bits'])}, {ours['label']}: " + "; ".join(parts)


def _build_speed(row: dict[str, Any]) -> float:
    return 1 / max(1e-6, row["train_seconds"] + row["add_seconds"])


def _recall(ours: dict[str, Any], rivals: list[dict[str, Any]], key: str) -> str:
    best = max(rivals, key=lambda r: r[key])
    points = 100 * (ours[key] - best[key])
    verdict = "leads" if points > 0 else "behind" if points < 0 else "level"
    return f"recall {ours[key]:.3f} {verdict} ({points:+.1f} points to {best['label']})"


def _ratio(ours: dict[str, Any], rivals: list[dict[str, Any]], what: str, speed: Any) -> str:
    best = max(rivals, key=speed)
    ratio = speed(ours) / speed(best)
    verdict = "leads" if ratio >= 1 else "behind"
    return f"{what} {verdict} (x{ratio:.2f} of {best['label']})"
