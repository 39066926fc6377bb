"""The text that steps read when a suite brings none."""

from __future__ import annotations

from pathlib import Path

from .context import Context

__all__ = ["sample_text"]

_SAMPLE = (
    "The river rises in the hills north of the town and flows south for about sixty miles before it reaches the sea. "
    "Its upper course was dammed in the last century, and the reservoir supplies three counties with water. "
)


def sample_text(context: Context) -> str:
    """The probe's own text, that of the folder which was named, or a short English paragraph over and over."""
    if context.options.text_dir:
        from ..kv.haystack import read_texts

        return (read_texts(str(Path(context.options.text_dir))) or "")[:200_000]
    if context.is_probe:
        from ..kv.probe import probe_text

        return probe_text()[:60_000]
    return _SAMPLE * 150
