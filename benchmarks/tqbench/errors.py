"""Errors that a benchmark reports to its user in one line."""

__all__ = ["BenchError", "Unavailable"]


class BenchError(Exception):
    """A request that cannot be carried out; the message says what is missing and how to get it."""


class Unavailable(Exception):  # noqa: N818 - it is an outcome that ends as a "skipped" row, not a fault
    """A method that cannot run here; the message is the reason shown in the table."""
