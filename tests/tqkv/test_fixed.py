"""Fixed capacity: a ring of recent tokens, one token encoded a step, nothing allocated after the prompt."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache

from chunks import feed
from tqkv import TurboQuantCache


def caches(model, **options):
    return TurboQuantCache(model.config, **{"bits": 3, "recent_tokens": 16, "max_length": 220} | options)


@pytest.mark.parametrize("chunks", [[1] * 60, [3] + [1] * 40, [100] + [1] * 50, [20, 1, 1, 50, 1, 77]])
def test_attention(model, ids, chunks, checked):
    """Every step attends to all tokens, in whatever place of the ring."""
    model.set_attn_implementation("turboquant")
    cache = caches(model)
    feed(model, ids, cache, chunks)
    assert int(cache.get_seq_length()) == sum(chunks)
    assert len(checked) == (len(chunks) - 1) * len(cache.packed_layers)
    assert cache.packed_layers[0].view().packed == sum(chunks) - 20


@pytest.mark.parametrize("prompt", [1, 3, 4, 5, 19, 20, 21, 60])
def test_every_token_is_where_it_belongs(qwen3, prompt):
    """Window tokens are those given, packed tokens the code of those given, at every length."""
    cache, layer = caches(qwen3), None
    keys = torch.randn(2, 2, 100, 64, generator=torch.Generator().manual_seed(1))
    values = torch.randn(2, 2, 100, 64, generator=torch.Generator().manual_seed(2))
    chunks = [prompt] + [1] * (100 - prompt)
    stop = 0
    for n in chunks:
        cache.update(keys[:, :, stop : stop + n], values[:, :, stop : stop + n], 0)
        stop += n
        layer = cache.packed_layers[0]
        view = layer.view()
        assert view.packed == max(0, stop - 20)
        order = [*range(min(stop, 4)), *range(4 + view.packed, stop)]
        assert torch.equal(view.keys, keys[:, :, order])
        assert torch.equal(view.values, values[:, :, order])
    packed = slice(4, 4 + layer.view().packed)
    for store, states in ((layer.key_store, keys), (layer.value_store, values)):
        codes, scalars = store.codec.encode(states[:, :, packed])
        same = (store.rows(0, codes.shape[2]) == codes).all(-1)
        # Matrix products of one row and of many round differently, which may tip a code.
        assert same.float().mean() > 0.98
        got = store.scalars[..., : codes.shape[2]]
        torch.testing.assert_close(got[:, same], scalars[:, same], rtol=2e-3, atol=0)


def test_nothing_moves_after_the_prompt(qwen3, ids):
    """Buffers keep their addresses over steps and reset."""
    cache = caches(qwen3)
    feed(qwen3, ids, cache, [100])
    layer = cache.packed_layers[0]

    def addresses():
        stores = (layer.key_store, layer.value_store)
        tensors = [t for store in stores for t in (store.codes, store.scalars)]
        tensors += [layer.window.keys, layer.window.values, layer.length, layer.key_store.codec.mean]
        return [tensor.data_ptr() for tensor in tensors]

    before, total = addresses(), cache.memory()["total"]
    feed(qwen3, ids, cache, [1] * 30)
    assert addresses() == before
    cache.reset()
    assert int(cache.get_seq_length()) == 0
    feed(qwen3, ids, cache, [50, 1])
    assert addresses() == before
    assert cache.memory()["total"] == total


def test_reset_forgets(qwen3, ids):
    qwen3.set_attn_implementation("turboquant")
    cache = caches(qwen3)
    feed(qwen3, ids, cache, [100, 1])
    cache.reset()
    want = feed(qwen3, ids, caches(qwen3), [60, 1, 1])
    torch.testing.assert_close(feed(qwen3, ids, cache, [60, 1, 1]), want)


@pytest.mark.parametrize("implementation", ["turboquant", "sdpa"])
def test_generate(model, ids, implementation):
    """Same tokens as the usual cache while the window covers the sequence."""
    options = {"max_new_tokens": 12, "do_sample": False}
    want = model.generate(ids, past_key_values=DynamicCache(config=model.config), **options)
    model.set_attn_implementation(implementation)
    got = model.generate(ids, past_key_values=caches(model, recent_tokens=192), **options)
    assert torch.equal(got, want)


def test_padding(qwen3, ids, checked):
    qwen3.set_attn_implementation("turboquant")
    mask = torch.ones_like(ids)
    mask[1, :40] = 0
    cache = caches(qwen3)
    out = qwen3.generate(ids, attention_mask=mask, past_key_values=cache, max_new_tokens=5, do_sample=False)
    assert out.shape == (2, 155)
    assert len(checked) == 12


def test_capacity(qwen3, ids):
    cache = caches(qwen3, max_length=120)
    with pytest.raises(
        ValueError, match="max_length must hold all tokens, got 150 tokens for max_length = 120"
    ):
        feed(qwen3, ids, cache, [150])
    feed(qwen3, ids, cache, [119, 1])
    with pytest.raises(ValueError, match="got 121 tokens for max_length = 120"):
        feed(qwen3, ids, cache, [1])
    assert int(cache.get_seq_length()) == 120


def test_crop(qwen3, ids):
    cache = caches(qwen3)
    feed(qwen3, ids, cache, [50])
    cache.crop(0)
    with pytest.raises(ValueError, match="must be 0 where max_length is given, got -3"):
        cache.crop(-3)


def test_files(qwen3, ids, tmp_path):
    qwen3.set_attn_implementation("turboquant")
    cache = caches(qwen3)
    feed(qwen3, ids, cache, [100, 1, 1])
    cache.save(tmp_path / "cache")
    loaded = TurboQuantCache.load(tmp_path / "cache", qwen3.config)
    assert int(loaded.get_seq_length()) == 102
    want, got = (feed(qwen3, ids, c, [1, 1, 30]) for c in (cache, loaded))
    torch.testing.assert_close(got, want)


def test_rows(qwen3, ids):
    cache = caches(qwen3)
    feed(qwen3, ids, cache, [100])
    layer = cache.packed_layers[0]
    before = layer.decoded()[0]
    cache.reorder_cache(torch.tensor([1, 0]))
    torch.testing.assert_close(layer.decoded()[0], before.flip(0))


@pytest.mark.skipif(
    tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 7),
    reason="torch 2.6 does not compile models of transformers 5, whatever the cache",
)
def test_steps_of_a_compiled_model(qwen3, ids):
    """What a compiled model gives is what the model gives, and no step is compiled again for its length."""
    from torch._dynamo.testing import CompileCounter

    qwen3.set_attn_implementation("turboquant")
    want = feed(qwen3, ids, caches(qwen3), [100] + [1] * 12)
    counter, cache = CompileCounter(), caches(qwen3)
    compiled = torch.compile(qwen3, backend=counter)
    feed(qwen3, ids, cache, [100])
    graphs = []
    for step in range(100, 112):
        with torch.no_grad():
            got = compiled(ids[:, step : step + 1], past_key_values=cache).logits
        graphs.append(counter.frame_count)
    torch.testing.assert_close(got, want[:, -1:])
    assert graphs[0] > 0
    assert graphs[3:] == graphs[3:4] * 9
