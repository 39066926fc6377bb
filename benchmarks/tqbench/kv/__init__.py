"""Measurements of the packed KV cache."""
