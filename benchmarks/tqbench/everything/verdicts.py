"""Verdicts on the claims, and the state of the review's checks, from the checks of a record."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any

from ..check_report import read_checks
from ..checks import Check
from .claims import CLAIMS, REVIEWED

__all__ = ["claim_rows", "reviewed_rows", "select"]

_ORDER = ("FAIL", "WARN", "PASS", "SKIP")  # the worst status names a row
_SHOWN = 8


def select(checks: Iterable[Check], wanted: tuple[tuple[str, str], ...]) -> list[Check]:
    """Checks whose group begins and whose name matches as one of `wanted` says."""
    return [
        check
        for group, pattern in wanted
        for check in checks
        if check.group.startswith(group) and fnmatchcase(check.name, pattern)
    ]


def claim_rows(record: dict[str, Any]) -> list[dict[str, str]]:
    """Source, claim, printed value, verdict, our numbers and note of every claim."""
    checks = read_checks(record)
    rows = []
    for claim in CLAIMS:
        found = select(checks, claim.checks)
        made = [
            check
            for check in found
            if check.status != "SKIP" and (check.theory is None or check.theory >= claim.least)
        ]
        if made:
            verdict = claim.holds if all(check.status == "PASS" for check in made) else claim.fails
        else:
            verdict = "not tested"
        skipped = "; ".join(dict.fromkeys(check.reason for check in found if check.status == "SKIP"))
        note = claim.note if made else skipped or claim.untested
        rows.append({
            "source": claim.source, "claim": claim.text, "printed": claim.printed, "verdict": verdict,
            "ours": _numbers(made, claim.unit), "note": note,
        })  # fmt: skip
    return rows


def reviewed_rows(record: dict[str, Any]) -> list[dict[str, str]]:
    """Number, what was checked, the review's value, our status and how many checks of ours stand for it."""
    checks = read_checks(record)
    rows = []
    for number, reviewed in enumerate(REVIEWED, 1):
        found = select(checks, reviewed.checks)
        shown = [check for check in found if fnmatchcase(check.name, reviewed.shown)]
        statuses = [check.status for check in found]
        worst = next((status for status in _ORDER if status in statuses), "")
        counted = ", ".join(
            f"{statuses.count(s)} {s}" for s in ("PASS", "WARN", "FAIL", "SKIP") if s in statuses
        )
        rows.append({
            "number": str(number), "check": reviewed.text, "review": reviewed.review,
            "ours": _numbers(shown, reviewed.unit), "status": worst or "not run", "checks": counted,
        })  # fmt: skip
    return rows


def _numbers(checks: list[Check], unit: str) -> str:
    """Values of the checks, or their range when there are many, and what they are."""
    values = [check.value for check in checks if check.value is not None]
    if not values:
        return ""
    known = [check.theory for check in checks if check.theory is not None]
    return f"{_text(values)} {unit.format(theory=_text(known))}".strip()


def _text(values: list[float]) -> str:
    if len(values) > _SHOWN:
        return f"{min(values):.4g} to {max(values):.4g}"
    return ", ".join(f"{value:.4g}" for value in values)
