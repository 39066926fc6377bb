"""A packed KV cache for transformers models."""
