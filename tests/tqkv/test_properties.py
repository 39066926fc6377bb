"""Any order of updates, crops and batch operations against a plain list of tokens."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import Qwen3Config

from tqkv import TurboQuantCache

HEADS, DIM = 2, 64
CONFIG = Qwen3Config(
    num_hidden_layers=1, head_dim=DIM, num_attention_heads=2, num_key_value_heads=HEADS, hidden_size=64
)

OPERATIONS = st.one_of(
    st.tuples(st.just("update"), st.one_of(st.just(1), st.integers(1, 70))),
    st.tuples(st.just("crop"), st.integers(0, 60)),
    st.tuples(st.just("select"), st.lists(st.integers(0, 1), min_size=1, max_size=3)),
    st.tuples(st.just("reset"), st.just(0)),
)


class Tokens:
    """What a cache must hold: the states as they came, and as they first read once packed."""

    def __init__(self):
        self.generator = torch.Generator().manual_seed(0)
        self.clear()

    def clear(self):
        self.states = torch.zeros(2, 2, HEADS, 0, DIM)  # side, batch, heads, tokens, d
        self.read = self.states.clone()

    def fresh(self, n):
        new = torch.randn(2, self.states.shape[1], HEADS, n, DIM, generator=self.generator)
        self.states = torch.cat([self.states, new], dim=3)
        self.read = torch.cat([self.read, torch.full_like(new, torch.nan)], dim=3)
        return new

    def apply(self, change):
        self.states, self.read = change(self.states), change(self.read)


def check(layer, tokens, sinks):
    length, view = tokens.states.shape[3], layer.view()
    assert layer.get_seq_length() == length
    packed = torch.zeros(length, dtype=torch.bool)
    packed[view.sinks : view.sinks + view.packed] = True
    assert view.sinks == min(length, sinks)
    decoded = torch.stack(layer.decoded())
    torch.testing.assert_close(decoded[:, :, :, ~packed], tokens.states[:, :, :, ~packed], rtol=0, atol=0)
    before = tokens.read[:, :, :, packed]
    known = ~before.isnan()
    # Codes are never made again; only the product that turns them back rounds by the number of rows.
    torch.testing.assert_close(decoded[:, :, :, packed][known], before[known], rtol=1e-4, atol=1e-5)
    error = (decoded - tokens.states).square().sum(-1) / tokens.states.square().sum(-1)
    assert (error < 0.05).all()
    tokens.read[:, :, :, packed] = decoded[:, :, :, packed]


@pytest.mark.parametrize(("sinks", "recent"), [(4, 16), (0, 0), (20, 32)])
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(operations=st.lists(OPERATIONS, min_size=1, max_size=12))
def test_any_order(sinks, recent, operations):
    cache = TurboQuantCache(CONFIG, bits=4, sink_tokens=sinks, recent_tokens=recent)
    layer, tokens = cache.packed_layers[0], Tokens()
    for name, argument in [("update", 40), *operations]:
        length = tokens.states.shape[3]
        if name == "update":
            cache.update(*tokens.fresh(argument), 0)
        elif name == "crop":
            argument = min(argument, length)
            cache.crop(-argument)
            tokens.apply(lambda x, keep=length - argument: x[:, :, :, :keep])
        elif name == "select" and tokens.states.shape[1] > 1 and length:
            index = torch.tensor(argument)
            cache.batch_select_indices(index)
            tokens.apply(lambda x, index=index: x[:, index])
        elif name == "reset":
            cache.reset()
            tokens.clear()
        if layer.is_initialized:
            check(layer, tokens, sinks)
