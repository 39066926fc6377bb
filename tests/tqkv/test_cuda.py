"""The cache on a device: the same codes, the kernel in generate, steps replayed from a CUDA graph."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache

from chunks import feed
from tqkv import TurboQuantCache
from tqkv.codec import StateCodec

pytestmark = pytest.mark.gpu

OPTIONS = [
    {"bits": 3.5}, {"bits": 2.5}, {"key_bits": 4, "value_bits": 2}, {"code": "mse", "bits": 2},
    {"code": "mse", "bits": 4},
]  # fmt: skip


@pytest.fixture
def ids(ids):
    return ids.cuda()


def models(tiny, name="qwen3", dtype=torch.bfloat16, **changes):
    model = tiny(name, **{"head_dim": 128} | changes).to("cuda", dtype)
    model.set_attn_implementation("turboquant")
    return model


@pytest.mark.parametrize("options", [*OPTIONS, {"code": "mse", "bits": 2.5}, {"code": "prod", "bits": 3}])
def test_codes_are_those_of_the_cpu(options):
    """Rotations are matrix products, which round differently, so a few codes may differ, and no more."""
    options = {"code": "chain", "bits": options.get("bits", 4)} | options
    x = torch.randn(2, 3, 500, 128, generator=torch.Generator().manual_seed(0))
    coded = []
    for device in ("cpu", "cuda"):
        codec = StateCodec(128, options["bits"], options["code"], 2, "norm", 0, torch.device(device))
        codes, scalars = codec.encode(x.to(device))
        coded.append((codes.cpu(), scalars.cpu(), codec.decode(codes, scalars).cpu()))
    same = (coded[0][0] == coded[1][0]).all(-1)
    assert same.float().mean() > 0.97
    torch.testing.assert_close(coded[1][1][:, same], coded[0][1][:, same], rtol=2e-3, atol=1e-5)
    torch.testing.assert_close(coded[1][2][same], coded[0][2][same], rtol=2e-3, atol=2e-3)
    errors = [(decoded - x).square().mean().item() for _, _, decoded in coded]
    assert errors[1] == pytest.approx(errors[0], rel=2e-3)


@pytest.mark.parametrize("dims", [64, 128, 256])
@pytest.mark.parametrize("options", [*OPTIONS, {"bits": 3, "key_plan": "calibrated"}])
@pytest.mark.parametrize("pads", [0, 40])
def test_fused_attention(tiny, ids, options, dims, pads, monkeypatch):
    """The kernel in a model against decoding: error at most twice that of eager attention over decoded bf16 states."""
    import tqkv.attention

    model = models(tiny, head_dim=dims)
    mask = torch.ones_like(ids)
    mask[1, :pads] = 0
    cache, inner, seen = (
        TurboQuantCache(model.config, recent_tokens=16, **options),
        tqkv.attention.fused_attention,
        [],
    )

    def compared(query, view, padding, scaling):
        got = inner(query, view, padding, scaling)
        plain = view.settled()
        whole = [view.layer._whole(plain, held, store) for held, store in
                 ((plain.keys, view.layer.key_store), (plain.values, view.layer.value_store))]  # fmt: skip
        keys = whole[0].shape[2]
        causal = torch.ones(query.shape[2], keys, dtype=torch.bool, device="cuda").tril(keys - query.shape[2])
        some = causal if padding is None else causal & padding.mask[:, None, None, :keys]
        attend = torch.nn.functional.scaled_dot_product_attention
        exact = [t.double() for t in (query, *whole)]
        # bf16 states are what decoding gives; the exact result has the states before that rounding.
        for index, (held, store) in enumerate(
            ((plain.keys, view.layer.key_store), (plain.values, view.layer.value_store))
        ):
            packed = store.codec.decode(
                store.rows(0, plain.packed), store.scalars[..., : plain.packed]
            ).double()
            exact[index + 1] = torch.cat(
                [held[:, :, : plain.sinks].double(), packed, held[:, :, plain.sinks :].double()], 2
            )
        want = attend(*exact, attn_mask=some, scale=scaling, enable_gqa=True)
        rough = attend(query, *whole, attn_mask=some, scale=scaling, enable_gqa=True)
        error, limit = ((x.double() - want).square().mean().sqrt() for x in (got, rough))
        assert got is not None
        assert error <= 2 * limit
        seen.append(plain.packed)
        return got

    monkeypatch.setattr(tqkv.attention, "fused_attention", compared)
    feed(model, ids, cache, [100, *[1] * 20, 3], mask)
    assert len(seen) == 21 * 3 == cache.stats.fused
    assert cache.stats.fallback == 0
    assert seen[-1] > 0


@pytest.mark.parametrize("options", [{"bits": 3.5}, {"code": "mse", "bits": 4}])
@pytest.mark.parametrize("name", ["llama", "qwen3", "mistral", "sliding", "hybrid"])
def test_generate(tiny, ids, name, options):
    """Growing and fixed caches, exact while nothing is packed."""
    model = models(tiny, name, torch.float32)
    arguments = {"max_new_tokens": 12, "do_sample": False}
    want = model.generate(ids, past_key_values=DynamicCache(config=model.config), **arguments)
    for length in (None, 400):
        cache = TurboQuantCache(model.config, recent_tokens=256, max_length=length, **options)
        assert torch.equal(model.generate(ids, past_key_values=cache, **arguments), want)
        cache = TurboQuantCache(model.config, recent_tokens=16, max_length=length, **options)
        assert model.generate(
            ids, past_key_values=cache, num_beams=1 if length else 2, **arguments
        ).shape == (2, 162)
        assert cache.stats.fused > 0


@pytest.mark.parametrize(
    "options", [{"bits": 3.5}, {"code": "mse", "bits": 4}, {"bits": 3, "key_plan": "calibrated"}]
)
def test_steps_in_a_graph(tiny, ids, options):
    """A step captured once and replayed gives what the same steps give one by one."""
    # 200 tokens of a prompt are enough for plans of 64 dimensions.
    model = models(tiny, head_dim=64 if "key_plan" in options else 128, dtype=torch.float32)
    caches = [TurboQuantCache(model.config, recent_tokens=16, max_length=300, **options) for _ in range(2)]
    want = feed(model, ids, caches[0], [100, *[1] * 40])[:, 110:]
    feed(model, ids, caches[1], [100, *[1] * 10])
    token, position = ids[:, 110:111].clone(), torch.full((2, 1), 110, device="cuda")
    cache, graph = caches[1], torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        logits = model(token, position_ids=position, past_key_values=cache).logits
    got = []
    for step in range(110, 140):
        token.copy_(ids[:, step : step + 1])
        position.fill_(step)
        graph.replay()
        got.append(logits.clone())
    assert int(cache.get_seq_length()) == 140
    assert all(
        (layer.key_store.codec.plan is not None) == ("key_plan" in options) for layer in cache.packed_layers
    )
    torch.testing.assert_close(torch.cat(got, dim=1), want, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("options", [*OPTIONS, {"bits": 3, "centre_keys": False}])
@pytest.mark.parametrize("prompt", [3, 30])
def test_steps_encode_what_leaves_every_ring(tiny, options, prompt):
    """Codes and scales of each layer's packed tokens are those of the states given, the window holds the others."""
    cache = TurboQuantCache(models(tiny).config, recent_tokens=16, max_length=220, **options)
    generator = torch.Generator("cuda").manual_seed(0)
    states = torch.randn(3, 2, 2, 2, 100, 128, device="cuda", generator=generator).bfloat16() + 0.5
    for start, stop in [(0, prompt), *((n, n + 1) for n in range(prompt, 100))]:
        for index, (keys, values) in enumerate(states):
            cache.update(keys[:, :, start:stop], values[:, :, start:stop], index)
            cache.packed_layers[index].take()
    for layer, sides in zip(cache.packed_layers, states, strict=True):
        view = layer.view()
        assert view.packed == 80
        for store, given, held in zip(
            (layer.key_store, layer.value_store), sides, (view.keys, view.values), strict=True
        ):
            assert torch.equal(held, given[:, :, [*range(4), *range(84, 100)]])
            codes, scalars = store.codec.encode(given[:, :, 4:84])
            same = (store.rows(0, 80) == codes).all(-1)
            # Matrix products of few rows and of many round differently, which may tip a code.
            assert same.float().mean() > 0.97
            torch.testing.assert_close(store.scalars[..., :80][:, same], scalars[:, same], rtol=2e-3, atol=0)


def test_layers_on_their_devices(tiny, ids, tmp_path):
    """A cache saved from a device continues on it."""
    model = models(tiny, dtype=torch.float32)
    cache = TurboQuantCache(model.config, bits=4, code="mse", recent_tokens=16)
    feed(model, ids, cache, [100])
    cache.save(tmp_path / "cache")
    loaded = TurboQuantCache.load(tmp_path / "cache", model.config, device=dict.fromkeys(range(3), "cuda"))
    want, got = (feed(model, ids[:, 100:], c, [1, 1, 20]) for c in (cache, loaded))
    torch.testing.assert_close(got, want)


def spread(model, count):
    """Layers on `count` devices in turn, moved to by hooks as those of a device map do."""

    def moved(x, device):
        if isinstance(x, tuple):
            return tuple(moved(part, device) for part in x)
        return x.to(device) if isinstance(x, torch.Tensor) else x

    def move(module, args, kwargs):
        device = next(module.parameters()).device
        return moved(args, device), {name: moved(x, device) for name, x in kwargs.items()}

    for index, layer in enumerate(model.model.layers):
        layer.to(f"cuda:{index % count}")
    for module in (*model.model.layers, model.model.norm):
        module.register_forward_pre_hook(move, with_kwargs=True)
    return model


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("options", [{}, {"max_length": 220}, {"code": "prod", "bits": 3}])
def test_layers_on_several_devices(tiny, ids, options, tmp_path):
    """A model whose layers lie on two devices gives what it gives on one, from a saved cache too."""
    alone, parted = models(tiny, dtype=torch.float32), spread(models(tiny, dtype=torch.float32), 2)
    caches = [TurboQuantCache(alone.config, **{"bits": 3.5, "recent_tokens": 16} | options) for _ in range(2)]
    want = feed(alone, ids, caches[0], [100, *[1] * 20, 20])
    cache = caches[1]
    got = feed(parted, ids, cache, [100, *[1] * 20])
    assert [layer.device.index for layer in cache.packed_layers] == [0, 1, 0]
    assert (cache.stats.fused > 0) == ("code" not in options)
    torch.testing.assert_close(got, want[:, :120], rtol=2e-3, atol=2e-3)
    cache.save(tmp_path / "cache")
    devices = {index: f"cuda:{index % 2}" for index in range(3)}
    loaded = TurboQuantCache.load(tmp_path / "cache", parted.config, device=devices)
    for held in (cache, loaded):
        torch.testing.assert_close(
            feed(parted, ids[:, 120:], held, [20]), want[:, 120:], rtol=2e-3, atol=2e-3
        )
