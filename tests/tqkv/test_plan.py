"""Calibrated plans of keys: less error where queries look, never more, and a cache that keeps them."""

from __future__ import annotations

import pytest
import torch

from chunks import feed
from tqkv import TurboQuantCache
from tqkv.codec import StateCodec
from tqkv.plan import fit_key_plan

RECENT = {"bits": 3, "recent_tokens": 16, "key_plan": "calibrated"}


def gaussian(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def uneven(heads, d, seed):
    """Factors [heads, d, d] that give states a covariance of spectrum 1 / k."""
    basis = torch.linalg.qr(gaussian(heads, d, d, seed=seed))[0]
    return basis * torch.arange(1, d + 1).float().rsqrt() @ basis.mT


def states(d=64, tokens=600, seed=1, even=False):
    """Keys [2, 2, tokens, d] and queries [2, 6, tokens, d], three heads for each of keys."""
    keys, queries = gaussian(2, 2, tokens, d, seed=seed), gaussian(2, 2, 3, tokens, d, seed=seed + 1)
    if not even:
        keys, queries = keys @ uneven(2, d, 11), queries @ uneven(2, d, 12)[:, None]
    return keys + 0.5, queries.reshape(2, 6, tokens, d)


def logit_error(codec, keys, queries):
    """Mean squared error [heads] of inner products of keys through a codec with the queries of their heads."""
    error = codec.decode(*codec.encode(keys)) - keys
    grouped = queries.view(*keys.shape[:2], -1, keys.shape[3])
    return (grouped @ error.mT).square().mean(dim=(0, 2, 3))


def codecs(keys, queries=None, seen=None, bits=2.0, code="chain", scale="unbiased"):
    """One codec without and one with a plan for these states."""
    made = []
    for plan in (False, True):
        codec = StateCodec(keys.shape[3], bits, code, 2, scale, 0, torch.device("cpu"))
        codec.fit_mean(keys, seen)
        if plan:
            codec.fit_plan(keys, queries, seen)
        made.append(codec)
    return made


@pytest.mark.parametrize("code", ["chain", "mse", "prod"])
@pytest.mark.parametrize("bits", [2.0, 4.0])
def test_logits_err_less(code, bits):
    """On other states of the same kind: less than four fifths, with each code."""
    scale = "norm" if code == "prod" else "unbiased"
    plain, planned = codecs(*states(), bits=bits, code=code, scale=scale)
    later = states(seed=5)
    assert (logit_error(planned, *later) < 0.8 * logit_error(plain, *later)).all()


def test_error_is_as_predicted():
    """Error in proportion to tr(A K A') tr(A^-T Q A^-1), which is what the plan minimises."""
    keys, queries = states()
    plain, planned = codecs(keys, queries)
    grouped = queries.view(2, 2, -1, 64).transpose(0, 1).flatten(1, 2)
    rows = (keys - plain.mean).transpose(0, 1).flatten(1, 2)
    lengths = [
        (rows @ weights).square().sum(-1).mean(1) * (grouped @ basis).square().sum(-1).mean(1)
        for weights, basis in ((torch.eye(64), plain.basis), (planned.plan.weights, planned.basis))
    ]
    errors = [logit_error(codec, keys, queries) for codec in (plain, planned)]
    torch.testing.assert_close(errors[1] / errors[0], lengths[1] / lengths[0], rtol=0.05, atol=0)


@pytest.mark.parametrize("queries", [True, False])
def test_isotropic_states_have_no_plan(queries):
    """What has no directions gains nothing, and keeps the codes it has without the option."""
    keys, asked = states(even=True)
    plain, planned = codecs(keys, asked if queries else None)
    assert torch.equal(planned.plan.weights, torch.eye(64).repeat(2, 1, 1))
    for got, want in zip(planned.encode(keys), plain.encode(keys), strict=True):
        assert torch.equal(got, want)


def test_heads_are_apart():
    """A head without directions has no plan beside one that has."""
    keys, queries = states()
    even = states(even=True)
    keys[:, 1], queries[:, 3:] = even[0][:, 1], even[1][:, 3:]
    plan = codecs(keys, queries)[1].plan
    assert not torch.equal(plan.weights[0], torch.eye(64))
    assert torch.equal(plan.weights[1], torch.eye(64))


def test_what_changes_has_no_plan():
    """Directions that turn into others within the prompt would make later errors larger."""
    keys, queries = states()
    keys[:, :, 300:], queries[:, :, 300:] = (x[:, :, 300:].flip(-1) for x in (keys, queries))
    later = (gaussian(2, 2, 300, 64) @ uneven(2, 64, 40), gaussian(2, 6, 300, 64) @ uneven(6, 64, 41))
    plain, planned = codecs(
        torch.cat([keys[:, :, :300], later[0]], 2), torch.cat([queries[:, :, :300], later[1]], 2)
    )
    assert (logit_error(planned, *later) < 1.05 * logit_error(plain, *later)).all()


def test_keys_alone():
    """Without queries, or with too few, those that look like keys gain."""
    keys, queries = states()
    found = [codecs(keys, some)[1].plan.weights for some in (None, queries[:, :, :20])]
    assert torch.equal(*found)
    queries = states(seed=9)[0]
    plain, planned = codecs(keys)
    assert (logit_error(planned, keys, queries) < 0.97 * logit_error(plain, keys, queries)).all()


def test_few_keys_have_no_plan():
    keys, queries = states(tokens=63)
    assert torch.equal(codecs(keys, queries)[1].plan.weights, torch.eye(64).repeat(2, 1, 1))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, 0.0])
def test_odd_states_have_no_plan(bad):
    """Heads that are not finite, or nothing at all, keep the rotation; the others do not notice."""
    keys, queries = states()
    keys[0, 0, 3] = bad
    if bad == 0.0:
        keys[:, 0] = 0
    plan = fit_key_plan(keys, None, torch.eye(64), queries)
    assert torch.equal(plan.weights[0], torch.eye(64))
    assert plan.weights[1].isfinite().all()
    assert not torch.equal(plan.weights[1], torch.eye(64))


def test_maps_are_inverse_and_mild():
    keys, queries = states()
    plain, planned = codecs(keys, queries)
    whole = planned.plan.weights.mT @ planned.plan.basis
    torch.testing.assert_close(whole, plain.rotation.expand(2, -1, -1), rtol=0, atol=1e-5)
    assert (torch.linalg.cond(planned.plan.weights) < 20).all()


def test_padding_does_not_count():
    """Tokens that are not seen change neither mean nor plan."""
    keys, queries = states()
    seen = torch.ones(2, 600, dtype=torch.bool)
    seen[1, :100] = False
    want = codecs(keys, queries, seen)[1]
    keys[1, :, :100], queries[1, :, :100] = torch.nan, 1e6
    got = codecs(keys, queries, seen)[1]
    torch.testing.assert_close(got.mean, want.mean)
    torch.testing.assert_close(got.plan.weights, want.plan.weights)


def test_unbiased_in_the_basis_of_the_plan():
    """The scale is that of what is coded: <A x_hat, A x> = |A x|^2."""
    keys, queries = states()
    codec = codecs(keys, queries)[1]
    x = keys - codec.mean
    decoded = codec.decode(*codec.encode(keys)) - codec.mean
    mapped, back = x @ codec.plan.weights, decoded @ codec.plan.weights
    torch.testing.assert_close((mapped * back).sum(-1), mapped.square().sum(-1), rtol=1e-3, atol=1e-4)


# In models


@pytest.fixture
def fused(monkeypatch, checked):
    """The kernel's reference in its place, on the CPU."""
    from tqkv.kernels import reference

    monkeypatch.setattr("tqkv.fused._kernel", lambda device: reference.decode_attention)
    return checked


def plans(cache):
    return [layer.key_store.codec.plan for layer in cache.packed_layers]


def turned(cache):
    """Heads, over all layers, that have a map."""
    d = cache.packed_layers[0].key_store.codec.head_dim
    return sum(not torch.equal(head, torch.eye(d)) for plan in plans(cache) for head in plan.weights)


CHUNKS = ([120] + [1] * 10, [10, 120, 1, 5], [1] * 45)


@pytest.mark.parametrize("chunks", CHUNKS)
@pytest.mark.parametrize("options", [{}, {"max_length": 200}, {"centre_keys": False}, {"code": "prod"}])
def test_packed_attention_is_attention_over_decoded_states(model, ids, options, chunks, checked):
    model.set_attn_implementation("turboquant")
    cache = TurboQuantCache(model.config, **RECENT | options)
    feed(model, ids, cache, chunks)
    assert checked
    assert all(plan is not None for plan in plans(cache))


@pytest.mark.parametrize("options", [{}, {"max_length": 200}, {"centre_keys": False}])
@pytest.mark.parametrize("padded", [0, 40])
def test_the_kernel_is_given_queries(qwen3, ids, options, padded, fused):
    """Grouped queries, padding, growing and fixed caches: what the kernel computes is attention over decoded states."""
    qwen3.set_attn_implementation("turboquant")
    mask = torch.ones_like(ids)
    mask[1, :padded] = 0
    cache = TurboQuantCache(qwen3.config, **RECENT | options)
    feed(qwen3, ids, cache, [130] + [1] * 20, mask)
    assert cache.stats.fused == 20 * 3 == len(fused)
    assert turned(cache) > 0


def test_prompts_are_packed_with_their_queries(qwen3, ids, monkeypatch):
    """Under turboquant the plan sees all queries of the prompt; another attention leaves it to the keys."""
    import tqkv.codec

    seen, inner = [], tqkv.codec.fit_key_plan

    def noted(keys, mean, rotation, queries, mask):
        seen.append(None if queries is None else tuple(queries.shape))
        return inner(keys, mean, rotation, queries, mask)

    monkeypatch.setattr("tqkv.codec.fit_key_plan", noted)
    for name, want in (("turboquant", (2, 4, 120, 64)), ("sdpa", None)):
        qwen3.set_attn_implementation(name)
        cache = TurboQuantCache(qwen3.config, **RECENT)
        feed(qwen3, ids, cache, [120, 1])
        assert seen == [want] * 3
        seen.clear()


@pytest.mark.parametrize("options", [{}, {"max_length": 200}])
def test_layers_wait_for_one_prompt_at_a_time(qwen3, ids, options):
    """When a layer's attention is done its keys are codes and nothing holds on to the prompt."""
    qwen3.set_attn_implementation("turboquant")
    cache, held = TurboQuantCache(qwen3.config, **RECENT | options), []
    for layer in qwen3.model.layers:
        layer.mlp.register_forward_pre_hook(
            lambda *_: held.append([x._due is not None for x in cache.packed_layers])
        )
    feed(qwen3, ids, cache, [120])
    assert held == [[False] * 3] * 3


@pytest.mark.parametrize("options", [{}, {"max_length": 200}])
def test_prompts_that_no_attention_read(qwen3, options):
    """States given without attention are packed as soon as anyone looks."""
    qwen3.set_attn_implementation("turboquant")
    keys, values = states(tokens=150)[0], states(tokens=150, seed=3)[0]
    caches = [TurboQuantCache(qwen3.config, **RECENT | options) for _ in range(3)]
    for cache in caches:
        cache.update(keys, values, 0)
        assert int(cache.get_seq_length()) == 150
    caches[0].packed_layers[0].take()
    caches[1].reorder_cache(torch.tensor([0, 1]))
    found = [cache.packed_layers[0].decoded()[0] for cache in caches]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize("options", [{}, {"max_length": 200}])
def test_files_keep_plans(qwen3, ids, tmp_path, options):
    qwen3.set_attn_implementation("turboquant")
    cache = TurboQuantCache(qwen3.config, **RECENT | options)
    feed(qwen3, ids, cache, [130])
    cache.save(tmp_path / "cache")
    loaded = TurboQuantCache.load(tmp_path / "cache", qwen3.config)
    assert loaded.options == cache.options
    assert turned(loaded) == turned(cache) > 0
    want, got = (feed(qwen3, ids[:, 130:], c, [1, 1, 18]) for c in (cache, loaded))
    torch.testing.assert_close(got, want)


def test_a_file_with_nothing_packed_makes_its_plan_later(qwen3, ids, tmp_path):
    qwen3.set_attn_implementation("turboquant")
    cache = TurboQuantCache(qwen3.config, **RECENT)
    feed(qwen3, ids, cache, [10])
    cache.save(tmp_path / "cache")
    loaded = TurboQuantCache.load(tmp_path / "cache", qwen3.config)
    feed(qwen3, ids[:, 10:], loaded, [140])
    assert turned(loaded) > 0


@pytest.mark.parametrize("options", [{}, {"max_length": 200}])
def test_rows_crops_and_reset(qwen3, ids, options):
    """Maps belong to heads: rows come and go, tokens too; reset forgets them, at their address where it is fixed."""
    qwen3.set_attn_implementation("turboquant")
    cache = TurboQuantCache(qwen3.config, **RECENT | options)
    feed(qwen3, ids, cache, [130])
    layer = cache.packed_layers[0]
    before, first = layer.decoded()[0], layer.key_store.codec.plan
    weights = first.weights.clone()
    cache.reorder_cache(torch.tensor([1, 0]))
    torch.testing.assert_close(layer.decoded()[0], before.flip(0))
    if not options:
        cache.crop(-50)
        torch.testing.assert_close(layer.decoded()[0], before.flip(0)[:, :, :80])
    cache.reset()
    feed(qwen3, ids.flip(1), cache, [140, 1])
    plan = layer.key_store.codec.plan
    assert not torch.equal(plan.weights, weights)
    assert (plan.weights.data_ptr() == first.weights.data_ptr()) == bool(options)


def test_memory_counts_plans(qwen3, ids):
    sizes = []
    for plan in ("oblivious", "calibrated"):
        cache = TurboQuantCache(qwen3.config, recent_tokens=16, key_plan=plan)
        feed(qwen3, ids, cache, [120])
        sizes.append(cache.memory()["tables"])
    assert sizes[1] - sizes[0] == 3 * 2 * 64 * 64 * 8


def test_steps_weigh_the_rows_of_their_layers():
    from tqkv.kernels.append import RingSide, _weigh

    empty, rows = torch.empty(0), gaussian(3, 2, 2, 8)
    weights = [gaussian(2, 8, 8, seed=2), None, gaussian(2, 8, 8, seed=3)]
    want = [
        x if w is None else torch.einsum("bhi,hij->bhj", x, w)
        for x, w in zip(rows.clone(), weights, strict=True)
    ]
    _weigh(rows, [RingSide(empty, empty, empty, None, w) for w in weights])
    torch.testing.assert_close(rows, torch.stack(want))


@pytest.mark.parametrize("value", ["auto", True, None])
def test_wrong_values(qwen3, value):
    with pytest.raises(ValueError, match=f"key_plan must be one of 'oblivious', 'calibrated', got {value!r}"):
        TurboQuantCache(qwen3.config, key_plan=value)
