import math

import pytest
import torch

from packed import moved, random_problem
from tqkv.kernels import decode, reference, schedule
from tqkv.kernels.decode import PackedStates, decode_attention

pytestmark = pytest.mark.gpu
RATES = (2.0, 2.5, 3.0, 3.5, 4.0)


def on_gpu(arguments, keywords):
    q, keys, values, lengths = arguments
    keywords = {k: v.cuda() if isinstance(v, torch.Tensor) else v for k, v in keywords.items()}
    return (q.cuda(), moved(keys, "cuda"), moved(values, "cuda"), lengths.cuda()), keywords


def relative_error(result, truth):
    return float((result.double() - truth.double()).norm() / truth.double().norm().clamp_min(1e-30))


def decoded_problem(arguments, keywords):
    """The error that decoding to bfloat16 and plain attention make, and float32's result."""
    q, keys, values, lengths = arguments
    truth = reference.decode_attention(*arguments, **keywords)
    d = q.shape[-1]
    k = reference.rotate(reference._states(keys, "key", d), keys.signs, inverse=True)
    if keys.mean is not None:
        k = k + keys.mean[:, None]
    v = reference.rotate(reference._states(values, "value", d), values.signs, inverse=True)
    tokens = torch.arange(k.shape[2], device=q.device)
    mask = tokens < lengths[:, None]
    if keywords.get("starts") is not None:
        mask &= tokens >= keywords["starts"][:, None]
    plain = torch.nn.functional.scaled_dot_product_attention(
        q.bfloat16(),
        k.bfloat16(),
        v.bfloat16(),
        attn_mask=mask[:, None, None],
        scale=keywords["scaling"],
        enable_gqa=True,
    )
    return truth, relative_error(plain, truth)


@pytest.mark.parametrize("d", [64, 128, 256])
@pytest.mark.parametrize("bits", RATES)
def test_every_rate_and_width_is_at_most_twice_as_wrong_as_decoding(d, bits):
    problem = on_gpu(*random_problem(2, 12, 2, 1, d, [1000, 517], bits=bits, mean=True, dtype=torch.bfloat16))
    truth, plain = decoded_problem(*problem)
    error = relative_error(decode_attention(*problem[0], **problem[1]), truth)
    assert error <= 2 * plain, (error, plain)


@pytest.mark.parametrize("bits", [2.0, 4.0])
@pytest.mark.parametrize("d", [64, 128, 256])
def test_scalar_codes(d, bits):
    problem = on_gpu(*random_problem(1, 4, 2, 1, d, [333], bits=bits, code="mse"))
    truth = reference.decode_attention(*problem[0], **problem[1])
    assert relative_error(decode_attention(*problem[0], **problem[1]), truth) < 2e-3


@pytest.mark.parametrize("d", [64, 128, 256])
@pytest.mark.parametrize(("bits", "value_bits"), [(4.0, 2.0), (2.5, 3.5), (3.0, 2.5)])
def test_keys_and_values_of_different_rates(d, bits, value_bits):
    problem = on_gpu(*random_problem(1, 6, 1, 1, d, [777], bits=bits, value_bits=value_bits))
    truth = reference.decode_attention(*problem[0], **problem[1])
    assert relative_error(decode_attention(*problem[0], **problem[1]), truth) < 2e-3


@pytest.mark.parametrize("lengths", [[0, 1], [15, 16], [17, 1000], [32, 33], [4097, 31]])
@pytest.mark.parametrize("extra", [0, 1, 3, 128])
def test_lengths_and_windows(lengths, extra):
    problem = on_gpu(*random_problem(2, 8, 2, 1, 128, lengths, extra=extra))
    truth = reference.decode_attention(*problem[0], **problem[1])
    out = torch.full_like(problem[0][0], torch.nan)
    result = decode_attention(*problem[0], **problem[1], out=out)
    assert result is out
    assert relative_error(result, truth) < 2e-3
    assert (result == 0).all() == (truth == 0).all()


@pytest.mark.parametrize("group", [1, 2, 3, 4, 5, 6, 7, 8, 12])
@pytest.mark.parametrize("new", [1, 2])
def test_groups_and_new_tokens(group, new):
    problem = on_gpu(*random_problem(2, 2 * group, 2, new, 128, [100, 333], extra=20))
    problem[1]["extra_lengths"] = torch.tensor([20, 7], dtype=torch.int32, device="cuda")
    truth = reference.decode_attention(*problem[0], **problem[1])
    assert relative_error(decode_attention(*problem[0], **problem[1]), truth) < 2e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("d", [64, 256])
def test_padding_and_masks(dtype, d):
    problem = on_gpu(*random_problem(3, 6, 2, 1, d, [500, 64, 40], extra=24, dtype=dtype, mean=True))
    problem[1]["starts"] = torch.tensor([0, 17, 40], dtype=torch.int32, device="cuda")
    problem[1]["extra_mask"] = torch.rand(3, 24, device="cuda") < 0.5
    truth = reference.decode_attention(problem[0][0].float(), *problem[0][1:], **problem[1])
    bound = {torch.float32: 2e-3, torch.float16: 3e-3, torch.bfloat16: 6e-3}[dtype]
    assert relative_error(decode_attention(*problem[0], **problem[1]), truth) < bound


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("d", [64, 128, 256])
def test_queries_that_are_given_in_the_basis_of_the_keys(d, dtype):
    problem = on_gpu(*random_problem(2, 6, 2, 2, d, [90, 700], extra=9, mean=True, dtype=dtype))
    problem[1]["key_queries"] = torch.randn(2, 6, 2, d, device="cuda")
    truth = reference.decode_attention(problem[0][0].float(), *problem[0][1:], **problem[1])
    bound = {torch.float32: 2e-3, torch.bfloat16: 8e-3}[dtype]
    assert relative_error(decode_attention(*problem[0], **problem[1]), truth) < bound


@pytest.mark.parametrize("d", [64, 128, 256])
def test_many_tokens_in_one_block(d):
    """Sums of thousands of steps, and weights from one to below 2^-20 of the largest."""
    problem = on_gpu(*random_problem(64, 4, 2, 1, d, [30000] * 64, scaling=6 / math.sqrt(d)))
    truth = reference.decode_attention(
        *(problem[0][0][:1], *(one_row(states) for states in problem[0][1:3]), problem[0][3][:1]),
        **problem[1],
    )
    result = decode_attention(*problem[0], **problem[1])
    assert relative_error(result[:1], truth) < 2e-3


def one_row(states):
    """The first row of the batch of packed states."""
    return PackedStates(
        states.codes[:1].contiguous(),
        states.scales[:1].contiguous(),
        states.bits,
        states.tables,
        states.signs,
    )


def test_what_is_masked_may_be_nan():
    (q, keys, values, lengths), keywords = on_gpu(*random_problem(2, 8, 2, 1, 128, [100, 37], extra=8))
    keywords["extra_lengths"] = torch.tensor([8, 5], dtype=torch.int32, device="cuda")
    truth = reference.decode_attention(q, keys, values, lengths, **keywords)
    for states in (keys, values):
        for row, length in enumerate(lengths.tolist()):
            states.scales[row, :, length:] = torch.nan
            states.codes[row, :, -(-length // 16) :] = 255
    for states in (keywords["extra_k"], keywords["extra_v"]):
        states[1, :, 5:] = torch.nan
    assert relative_error(decode_attention(q, keys, values, lengths, **keywords), truth) < 2e-3


def test_nan_that_is_seen_shows():
    (q, keys, values, lengths), keywords = on_gpu(*random_problem(2, 4, 2, 1, 128, [100, 100]))
    keys.scales[0, 1, 50] = torch.nan
    result = decode_attention(q, keys, values, lengths, **keywords)
    assert result[0, 2:].isnan().all()
    assert result[0, :2].isfinite().all()
    assert result[1].isfinite().all()


def test_nan_with_all_bits_set_shows_and_is_not_waited_for():
    (q, keys, values, lengths), keywords = on_gpu(
        *random_problem(1, 8, 2, 1, 128, [300], extra=8, dtype=torch.bfloat16)
    )
    q.view(torch.int16)[0, 1] = -1
    keywords["extra_v"].view(torch.int16)[0, 1, 3] = -1
    result = decode_attention(q, keys, values, lengths, **keywords)
    assert result[0, 1].isnan().all()
    assert result[0, 4:].isnan().all()
    assert result[0, [0, 2, 3]].isfinite().all()


@pytest.mark.parametrize("heads", [4, 8])
def test_blocks_that_do_not_wait_leave_their_query_to_the_last(heads, monkeypatch):
    problem = on_gpu(*random_problem(1, heads, 1, 1, 256, [5000], extra=20))
    expected = decode_attention(*problem[0], **problem[1])
    for patience in (1, 1000, 3000):
        monkeypatch.setattr(decode, "_PATIENCE", patience)
        assert all(torch.equal(decode_attention(*problem[0], **problem[1]), expected) for _ in range(20))
    for sums, scalars, counters in decode._scratches.values():
        assert (sums == -1).all()
        assert (scalars == -1).all()
        assert not counters.any()


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 2e-3), (torch.bfloat16, 6e-3)])
@pytest.mark.parametrize("chosen", [(1, 2), (4, 3), (5, 16), (16, 2), (30, 8)])
def test_blocks_that_serve_several_windows(chosen, dtype, bound, monkeypatch):
    monkeypatch.setattr(schedule, "choose", lambda *_: chosen)
    for batch, d in ((1, 128), (3, 256), (9, 64)):
        problem = on_gpu(*random_problem(batch, 16, 4, 1, d, [900] * batch, extra=140, dtype=dtype))
        truth = reference.decode_attention(problem[0][0].float(), *problem[0][1:], **problem[1])
        first = decode_attention(*problem[0], **problem[1])
        assert relative_error(first, truth) < bound
        assert all(torch.equal(decode_attention(*problem[0], **problem[1]), first) for _ in range(20))
    for sums, scalars, counters in decode._scratches.values():
        assert (sums == -1).all()
        assert (scalars == -1).all()
        assert not counters.any()


def test_graphs_that_run_at_once():
    graphs, outs, problems = [], [], []
    for seed, tokens in enumerate((900, 3000, 5000)):
        problems.append(on_gpu(*random_problem(1, 8, 2, 1, 128, [tokens], extra=4 + seed)))
        decode_attention(*problems[-1][0], **problems[-1][1])
        graphs.append(torch.cuda.CUDAGraph())
        with torch.cuda.graph(graphs[-1]):
            for _ in range(20):
                out = decode_attention(*problems[-1][0], **problems[-1][1])
        outs.append(out)
    streams = [torch.cuda.Stream() for _ in graphs]
    for _ in range(5):
        for graph, stream in zip(graphs, streams, strict=True):
            with torch.cuda.stream(stream):
                graph.replay()
    torch.cuda.synchronize()
    for out, problem in zip(outs, problems, strict=True):
        truth = reference.decode_attention(*problem[0], **problem[1])
        assert relative_error(out, truth) < 2e-3


@pytest.mark.parametrize("size", [1e-4, 1.0, 100.0])
def test_sharp_and_flat_softmax_and_scales_of_any_size(size):
    (q, keys, values, lengths), keywords = on_gpu(*random_problem(1, 8, 1, 1, 128, [3000], scaling=1.0))
    generator = torch.Generator(device="cuda").manual_seed(1)
    values.scales.mul_(torch.exp(3 * torch.randn(values.scales.shape, device="cuda", generator=generator)))
    keywords["scaling"] = size / math.sqrt(128)
    truth = reference.decode_attention(q, keys, values, lengths, **keywords)
    # A logit of size L carries the rounding of its float16 operands, L / 2**11, into its weight.
    bound = 3e-3 * max(1.0, size)
    assert relative_error(decode_attention(q, keys, values, lengths, **keywords), truth) < bound


def test_strided_queries_and_windows():
    (q, keys, values, lengths), keywords = on_gpu(*random_problem(2, 8, 2, 1, 128, [100, 333], extra=30))
    truth = reference.decode_attention(q, keys, values, lengths, **keywords)
    keywords["extra_k"] = torch.cat([keywords["extra_k"]] * 2, dim=2)[:, :, :30]
    strided = torch.cat([q, q], dim=2).transpose(1, 2).contiguous().transpose(1, 2)[:, :, :1]
    assert relative_error(decode_attention(strided, keys, values, lengths, **keywords), truth) < 2e-3


def test_replayed_graph_reads_new_lengths_and_queries():
    (q, keys, values, lengths), keywords = on_gpu(*random_problem(1, 8, 2, 1, 128, [2000], extra=4))
    decode_attention(q, keys, values, lengths, **keywords)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = decode_attention(q, keys, values, lengths, **keywords)
    for length in (2000, 0, 333):
        lengths.fill_(length)
        q.normal_()
        graph.replay()
        truth = reference.decode_attention(q, keys, values, lengths, **keywords)
        assert relative_error(out, truth) < 2e-3


def test_the_same_bits_every_time():
    problem = on_gpu(*random_problem(2, 8, 2, 1, 256, [5000, 777], extra=20))
    first = decode_attention(*problem[0], **problem[1])
    assert all(torch.equal(first, decode_attention(*problem[0], **problem[1])) for _ in range(5))


def test_wrong_arguments_are_named():
    (q, keys, values, lengths), keywords = on_gpu(*random_problem(1, 8, 2, 1, 128, [100]))
    with pytest.raises(ValueError, match="lengths must be"):
        decode_attention(q, keys, values, lengths.long(), **keywords)
    with pytest.raises(ValueError, match="key codes must be"):
        decode_attention(
            q, PackedStates(keys.codes[..., :-1], *list(vars(keys).values())[1:]), values, lengths, **keywords
        )
    with pytest.raises(ValueError, match="q must be"):
        decode_attention(q.double(), keys, values, lengths, **keywords)
    with pytest.raises(ValueError, match="extra_k and extra_v"):
        decode_attention(q, keys, values, lengths, extra_k=q, **keywords)
