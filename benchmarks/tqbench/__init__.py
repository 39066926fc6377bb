"""Benchmarks of tqann and of its rivals: sources of vectors, methods, one runner, records and reports.

Importing the package is cheap; every heavy import happens where it is needed.
"""
