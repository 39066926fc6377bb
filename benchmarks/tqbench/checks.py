"""Checks of claims: what was measured beside theory, the paper's value and the review's, and how it stands."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["STATUSES", "Check", "at_least", "at_most", "close_to", "counts", "exit_status", "skipped"]

STATUSES = ("PASS", "WARN", "FAIL", "SKIP")


@dataclass(frozen=True)
class Check:
    """One claim and its outcome.

    Parameters
    ----------
    group : str
        Heading under which it is shown.
    name : str
        What was measured, with its unit.
    value : float, optional
        Our value; None when skipped, or when it failed by being no finite number.
    threshold : str
        What PASS and WARN need, in words.
    status : str
        One of `STATUSES`.
    theory : float, optional
        What mathematics predicts for `value`.
    paper, review : str
        What the TurboQuant paper and the public review print, quoted as theirs; empty when they print nothing.
    reason : str
        Why it is not PASS, or what must be known to read the value.

    Raises
    ------
    ValueError
        When `status` is unknown, a check is skipped with a value or without a reason, or passes without a value.
    """

    group: str
    name: str
    value: float | None
    threshold: str
    status: str
    theory: float | None = None
    paper: str = ""
    review: str = ""
    reason: str = ""

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise ValueError(f"status must be one of {', '.join(STATUSES)}, got {self.status!r}")
        if self.status == "SKIP" and not self.reason:
            raise ValueError(f"reason must say why {self.name!r} is skipped, got none")
        if self.status == "SKIP" and self.value is not None:
            raise ValueError(f"value must be None when skipped, got {self.value!r}")
        if self.status in ("PASS", "WARN") and self.value is None:
            raise ValueError(f"value must be a number for {self.status}, got None")

    def as_row(self) -> dict[str, Any]:
        """JSON-able dict of all fields."""
        return asdict(self)


def close_to(
    group: str, name: str, value: float, theory: float, tolerance: float, *, warn: float = 3.0, **quoted: str
) -> Check:
    """PASS within the relative `tolerance` of theory, WARN within `warn` times it, FAIL beyond.

    `quoted` takes `paper`, `review` and `reason`, here and below.

    Raises
    ------
    ValueError
        When `theory` is 0, from which nothing has a relative distance.
    """
    if theory == 0:
        raise ValueError(f"theory must not be 0 for {name!r}, got 0: use at_most")
    off = abs(value - theory) / abs(theory)
    status = "PASS" if off <= tolerance else "WARN" if off <= warn * tolerance else "FAIL"
    threshold = f"within {100 * tolerance:g}% of theory; WARN to {100 * warn * tolerance:g}%"
    if tolerance == 0:
        threshold = "equal to theory"
    return _judged(group, name, value, threshold, status, theory, f"{100 * off:.2g}% off the theory", quoted)


def at_most(
    group: str,
    name: str,
    value: float,
    limit: float,
    *,
    warn: float | None = None,
    theory: float | None = None,
    **quoted: str,
) -> Check:
    """PASS at or below `limit`, WARN at or below `warn` when it is given, otherwise FAIL."""
    status = "PASS" if value <= limit else "WARN" if warn is not None and value <= warn else "FAIL"
    threshold = f"at most {limit:.4g}" + ("" if warn is None else f"; WARN to {warn:.4g}")
    return _judged(group, name, value, threshold, status, theory, f"above {limit:.4g}", quoted)


def at_least(
    group: str,
    name: str,
    value: float,
    limit: float,
    *,
    warn: float | None = None,
    theory: float | None = None,
    **quoted: str,
) -> Check:
    """PASS at or above `limit`, WARN at or above `warn` when it is given, otherwise FAIL."""
    status = "PASS" if value >= limit else "WARN" if warn is not None and value >= warn else "FAIL"
    threshold = f"at least {limit:.4g}" + ("" if warn is None else f"; WARN to {warn:.4g}")
    return _judged(group, name, value, threshold, status, theory, f"below {limit:.4g}", quoted)


def skipped(
    group: str, name: str, reason: str, threshold: str = "", *, paper: str = "", review: str = ""
) -> Check:
    """A check that cannot be made here, and why."""
    return Check(group, name, None, threshold, "SKIP", paper=paper, review=review, reason=reason)


def counts(checks: Iterable[Check]) -> dict[str, int]:
    """Number of checks of every status."""
    found = [check.status for check in checks]
    return {status: found.count(status) for status in STATUSES}


def exit_status(checks: Iterable[Check]) -> int:
    """1 when any check failed, else 0."""
    return int(any(check.status == "FAIL" for check in checks))


def _judged(
    group: str,
    name: str,
    value: float,
    threshold: str,
    status: str,
    theory: float | None,
    fault: str,
    quoted: dict[str, str],
) -> Check:
    note = quoted.pop("reason", "")
    if not math.isfinite(value):
        reason = "; ".join(filter(None, [f"got {value}", note]))
        return Check(group, name, None, threshold, "FAIL", theory, reason=reason, **quoted)
    reason = note if status == "PASS" else "; ".join(filter(None, [fault, note]))
    return Check(group, name, float(value), threshold, status, theory, reason=reason, **quoted)
