"""A prompt in chunks, for the tests of the cache."""

import torch


def feed(model, ids, cache, chunks, mask=None):
    """Logits [batch, tokens, vocabulary] of tokens given in chunks of these sizes; mask [batch, tokens]."""
    start, parts = 0, []
    for n in chunks:
        some = None if mask is None else mask[:, : start + n]
        with torch.no_grad():
            parts.append(model(ids[:, start : start + n], attention_mask=some, past_key_values=cache).logits)
        start += n
    return torch.cat(parts, dim=1)
