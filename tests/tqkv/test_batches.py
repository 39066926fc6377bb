"""Padding, beams, cropping and batch operations."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache

from tqkv import TurboQuantCache
from tqkv.masks import turboquant_mask


def padded(ids, pads, side):
    """`ids` with that many tokens of each row replaced by padding, and the mask."""
    ids, mask = ids.clone(), torch.ones_like(ids)
    for row, n in enumerate(pads):
        part = slice(0, n) if side == "left" else slice(ids.shape[1] - n, None)
        ids[row, part], mask[row, part] = 0, 0
    return ids, mask


def caches(model, **options):
    return TurboQuantCache(model.config, **{"bits": 3, "recent_tokens": 16} | options)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_with_nothing_packed(model, ids, side):
    """Padding masks reach attention: same tokens as the usual cache and sdpa."""
    ids, mask = padded(ids, (0, 37), side)
    options = {"attention_mask": mask, "max_new_tokens": 12, "do_sample": False}
    model.set_attn_implementation("sdpa")
    want = model.generate(ids, past_key_values=DynamicCache(config=model.config), **options)
    model.set_attn_implementation("turboquant")
    got = model.generate(ids, past_key_values=caches(model, recent_tokens=256), **options)
    assert torch.equal(got, want)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("chunks", [[100, 50], [100] + [1] * 50])
def test_padding_of_packed_tokens(model, ids, side, chunks, checked):
    """Masked tokens have no weight wherever they lie: sinks, codes or window."""
    ids, mask = padded(ids, (0, 37) if side == "left" else (60, 0), side)
    model.set_attn_implementation("turboquant")
    cache, start = caches(model), 0
    for n in chunks:
        with torch.no_grad():
            model(ids[:, start : start + n], attention_mask=mask[:, : start + n], past_key_values=cache)
        start += n
    assert len(checked) == (len(chunks) - 1) * len(cache.packed_layers)


def test_left_padding_does_not_change_a_row(qwen3, ids):
    """A padded row goes on as it does alone, at the same codes but for rounding."""
    qwen3.set_attn_implementation("turboquant")
    options = {"max_new_tokens": 12, "do_sample": False}
    both, mask = padded(ids, (0, 48), "left")
    want = qwen3.generate(
        ids[1:, 48:], past_key_values=caches(qwen3, bits=4, sink_tokens=0, centre_keys=False), **options
    )
    cache = caches(qwen3, bits=4, sink_tokens=0, centre_keys=False)
    got = qwen3.generate(both, attention_mask=mask, past_key_values=cache, **options)
    assert torch.equal(got[1, 150:], want[0, 102:])


def test_masks():
    """None without padding, two-dimensional with it, sdpa's for other patterns."""
    sizes = {"batch_size": 2, "q_length": 3, "kv_length": 8, "q_offset": 5, "kv_offset": 0}
    ones = torch.ones(2, 8, dtype=torch.bool)
    assert turboquant_mask(**sizes, attention_mask=None) is None
    assert turboquant_mask(**sizes, attention_mask=ones) is None
    assert turboquant_mask(**sizes, attention_mask=ones[:, :5]) is None
    holes = ones.clone()
    holes[1, 2] = False
    assert torch.equal(turboquant_mask(**sizes, attention_mask=holes), holes)
    other = turboquant_mask(**sizes, attention_mask=holes, mask_function=lambda b, h, q, k: k <= q - 1)
    assert other.shape == (2, 1, 3, 8)


@pytest.mark.parametrize("kind", ["bool", "additive"])
def test_four_dimensional_masks(qwen3, ids, kind, checked):
    """A mask made by the caller is obeyed, in prompt and continuation."""
    qwen3.set_attn_implementation("turboquant")
    cache = caches(qwen3)
    seen = torch.ones(150, 150, dtype=torch.bool).tril() & (torch.rand(150, 150) < 0.7).logical_or(
        torch.eye(150).bool()
    )
    full = (
        seen if kind == "bool" else torch.zeros(150, 150).masked_fill(~seen, torch.finfo(torch.float32).min)
    )
    with torch.no_grad():
        for start, stop in ((0, 120), (120, 150)):
            mask = full[start:stop, :stop].expand(2, 1, -1, -1)
            qwen3(ids[:, start:stop], attention_mask=mask, past_key_values=cache)
    assert len(checked) == 3


def test_beam_search_with_nothing_packed(model, ids):
    options = {"num_beams": 3, "max_new_tokens": 10, "do_sample": False}
    model.set_attn_implementation("sdpa")
    want = model.generate(ids, past_key_values=DynamicCache(config=model.config), **options)
    model.set_attn_implementation("turboquant")
    assert torch.equal(model.generate(ids, past_key_values=caches(model, recent_tokens=256), **options), want)


def test_beam_search_over_packed_tokens(model, ids, checked):
    model.set_attn_implementation("turboquant")
    cache = caches(model)
    out = model.generate(ids, past_key_values=cache, num_beams=3, max_new_tokens=40, do_sample=False)
    assert out.shape[1] == 190
    assert cache.packed_layers[0].batch_size == 6
    assert checked


def filled(model, ids, tokens=120):
    model.set_attn_implementation("turboquant")
    cache = caches(model)
    with torch.no_grad():
        model(ids[:, :tokens], past_key_values=cache)
    return cache


@pytest.mark.parametrize("index", [[1, 0], [0, 0], [1], [0, 1, 1]])
def test_selecting_rows(qwen3, ids, index):
    """Rows move with codes, scalars and window together."""
    cache, index = filled(qwen3, ids), torch.tensor(index)
    before = [layer.decoded() for layer in cache.packed_layers]
    cache.batch_select_indices(index)
    for layer, states in zip(cache.packed_layers, before, strict=True):
        for got, want in zip(layer.decoded(), states, strict=True):
            torch.testing.assert_close(got, want[index])
    assert cache.packed_layers[0].batch_size == len(index)


def test_reordering_keeps_addresses(qwen3, ids):
    cache = filled(qwen3, ids)
    layer = cache.packed_layers[0]
    address, before = layer.key_store.codes.data_ptr(), layer.decoded()[0]
    cache.reorder_cache(torch.tensor([1, 0]))
    assert layer.key_store.codes.data_ptr() == address
    torch.testing.assert_close(layer.decoded()[0], before.flip(0))


def test_repeating_and_masks_of_rows(qwen3, ids):
    cache = filled(qwen3, ids)
    before = cache.packed_layers[0].decoded()[1]
    cache.batch_repeat_interleave(2)
    torch.testing.assert_close(cache.packed_layers[0].decoded()[1], before.repeat_interleave(2, 0))
    cache.batch_select_indices(torch.tensor([True, False, False, True]))
    torch.testing.assert_close(cache.packed_layers[0].decoded()[1], before)


@pytest.mark.parametrize("remove", [0, 1, 5, 20, 21, 40, 115, 116, 118, 120])
def test_crop(qwen3, ids, remove, checked):
    """The tokens that stay are those from before, codes uncut; going on from any place works."""
    cache = filled(qwen3, ids)
    before = [layer.decoded() for layer in cache.packed_layers]
    codes = cache.packed_layers[0].key_store.rows(0, cache.packed_layers[0].packed)
    cache.crop(-remove)
    assert cache.get_seq_length() == 120 - remove
    for layer, states in zip(cache.packed_layers, before, strict=True):
        for got, want in zip(layer.decoded(), states, strict=True):
            torch.testing.assert_close(got, want[:, :, : 120 - remove])
    with torch.no_grad():
        for n in [1] * 40 + [30, 1]:
            qwen3(ids[:, :n], past_key_values=cache)
    layer = cache.packed_layers[0]
    kept = min(layer.packed, codes.shape[2], max(0, 120 - remove - 4))
    assert torch.equal(layer.key_store.rows(0, kept), codes[:, :, :kept])
    assert layer.packed % 16 == 0
    assert layer.window.count <= layer.window.slots


def test_crop_to_a_length(qwen3, ids):
    """Older releases of transformers give the length to keep."""
    cache = filled(qwen3, ids)
    cache.crop(50)
    assert cache.get_seq_length() == 50
    cache.crop(70)
    assert cache.get_seq_length() == 50
    with pytest.raises(ValueError, match="at most the 50 tokens held, got 60"):
        cache.crop(-60)


@pytest.mark.parametrize("recent", [16, 256])
def test_assisted_decoding(tiny, ids, recent):
    """Rejected candidates are cropped; with nothing packed the tokens are those of plain decoding."""
    model, assistant = tiny("qwen3"), tiny("qwen3", num_hidden_layers=1)
    model.set_attn_implementation("turboquant")
    options = {"max_new_tokens": 40, "do_sample": False}
    cache = caches(model, recent_tokens=recent)
    got = model.generate(ids[:1], past_key_values=cache, assistant_model=assistant, **options)
    assert got.shape[1] == 190
    if recent == 256:
        plain = model.generate(ids[:1], past_key_values=DynamicCache(config=model.config), **options)
        assert torch.equal(got, plain)


def test_continuing_a_conversation(qwen3, ids):
    """A cache that comes back from generate takes the next turn."""
    qwen3.set_attn_implementation("turboquant")
    cache = caches(qwen3)
    first = qwen3.generate(ids, past_key_values=cache, max_new_tokens=20, do_sample=False)
    longer = torch.cat([first, ids[:, :30]], dim=1)
    second = qwen3.generate(longer, past_key_values=cache, max_new_tokens=5, do_sample=False)
    assert second.shape[1] == 205
    assert cache.get_seq_length() == 204
