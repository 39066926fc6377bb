"""Fused attention over packed keys and values."""
