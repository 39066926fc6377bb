"""Decode attention that reads packed keys and values: the CUDA kernel of ``decode*.cu`` on torch tensors."""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files

import torch
from torch.utils.weak import WeakTensorKeyDictionary

from tqcore.config import CHAIN_RATES
from tqcore.gpu.rtc import Kernel, capture_id, compile_module
from tqkv.kernels import schedule
from tqkv.layout import PackedLayout
from tqkv.tables import ByteTables

__all__ = ["PackedStates", "decode_attention"]

_QUERIES = 8  # of a block, or 4 where a head has no more: the n side of the matrix instruction has 8 columns
_ROUNDS = 3  # of a rotation, at most
_NUMBERS, _PAIRS = 1 << 20, 1024  # that a scratch has room for: partial results and counters
_SPARES = 2  # scratches for graphs that are still to be captured
_PATIENCE = 50_000  # cycles that a block waits for the others, some 30 microseconds
_STATES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}

# Compiled as one.
_SOURCES = (
    *("decode_machine", "decode_basis", "decode_tiles", "decode_problem"),
    *("decode_rotation", "decode_packed", "decode_extra", "decode"),
)


@dataclass(frozen=True)
class PackedStates:
    """Packed keys or values of one layer.

    Attributes
    ----------
    codes : torch.Tensor
        uint8 [batch, kv_heads, tiles, tile_bytes] in the order of `tqkv.layout.PackedLayout`, contiguous.
    scales : torch.Tensor
        float16 [batch, kv_heads, 16 * tiles], contiguous, not negative; NaN makes the outputs NaN that see it.
    bits : float
        Bits per dimension.
    tables : ByteTables
        What the nibbles stand for.
    signs : torch.Tensor
        float32 [rounds, head_dim] of the rotation: each round multiplies by its signs, then transforms.
        Not to be changed once used.
    mean : torch.Tensor or None
        float32 [kv_heads, head_dim], taken off the keys before coding; None for values.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    bits: float
    tables: ByteTables
    signs: torch.Tensor
    mean: torch.Tensor | None = None


class _Problem(ctypes.Structure):
    """``Problem`` of decode_problem.cu."""

    _fields_ = (
        *(
            (name, ctypes.c_void_p)
            for name in ("q", "lengths", "starts", "key_tables", "value_tables", "key_signs")
        ),
        *((name, ctypes.c_void_p) for name in ("key_mean", "key_queries")),
        *((name, ctypes.c_int32) for name in ("q_batch", "q_head", "q_token", "heads", "kv_heads", "group")),
        *((name, ctypes.c_int32) for name in ("new_tokens", "capacity", "splits")),
        ("share", ctypes.c_uint32),
        *((name, ctypes.c_float) for name in ("scaling", "key_shrink", "value_shrink")),
        ("patience", ctypes.c_int32),
        *((name, ctypes.c_void_p) for name in ("key_codes", "value_codes", "key_scales", "value_scales")),
        *(
            (name, ctypes.c_void_p)
            for name in ("part_sums", "part_scalars", "counters", "value_signs", "out")
        ),
        *((name, ctypes.c_void_p) for name in ("extra_k", "extra_v", "extra_lengths", "extra_mask")),
        *((f"{name}_{axis}", ctypes.c_int64) for name in "kv" for axis in ("batch", "head", "token")),
        *((name, ctypes.c_int32) for name in ("extra", "windows")),
    )


def decode_attention(
    q: torch.Tensor,
    keys: PackedStates,
    values: PackedStates,
    lengths: torch.Tensor,
    *,
    scaling: float,
    starts: torch.Tensor | None = None,
    extra_k: torch.Tensor | None = None,
    extra_v: torch.Tensor | None = None,
    extra_lengths: torch.Tensor | None = None,
    extra_mask: torch.Tensor | None = None,
    key_queries: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Softmax attention of a few queries over packed tokens and, behind them, tokens in full precision.

    One kernel launch; may be captured in a CUDA graph after one call outside of it. Codes are read once for every 8
    queries that share a key-value head.

    Parameters
    ----------
    q : torch.Tensor
        [batch, heads, new, head_dim] float32, float16 or bfloat16, not rotated; the last dimension contiguous.
    keys, values : PackedStates
        The packed tokens.
    lengths : torch.Tensor
        int32 [batch], packed tokens of each row.
    scaling : float
        Factor of the logits.
    starts : torch.Tensor, optional
        int32 [batch], packed tokens before it are masked.
    extra_k, extra_v : torch.Tensor, optional
        [batch, kv_heads, width, head_dim], dtype of `q`, the last dimension contiguous. The last `new` valid ones are
        those of the queries: a query sees none that follow its own.
    extra_lengths : torch.Tensor, optional
        int32 [batch], valid tokens of `extra_k`; all if None.
    extra_mask : torch.Tensor, optional
        bool [batch, width], False where a token is masked.
    key_queries : torch.Tensor, optional
        float32 [batch, heads, new, head_dim], contiguous: the queries in the basis of the packed keys where this is
        not the rotation (`tqkv.plan`). Mean and tokens in full precision still meet `q`.
    out : torch.Tensor, optional
        [batch, heads, new, head_dim], contiguous, dtype of `q`.

    Returns
    -------
    torch.Tensor
        [batch, heads, new, head_dim], dtype of `q`; zero for queries that see nothing.

    Raises
    ------
    ValueError
        If a shape, dtype, device or order in memory is another one.
    """
    batch, heads, new, head_dim = q.shape
    kv_heads, tiles = keys.codes.shape[1:3]
    extra = 0 if extra_k is None else extra_k.shape[2]
    if out is None:
        out = torch.empty(batch, heads, new, head_dim, dtype=q.dtype, device=q.device)
    _check(q, keys, values, lengths, starts, extra_k, extra_v, extra_lengths, extra_mask, key_queries, out)
    if (
        not _in_pieces(q)
        or sum((n - 1) * step for n, step in zip(q.shape, q.stride(), strict=True)) >= 1 << 31
    ):
        q = q.clone(memory_format=torch.contiguous_format)
    group = heads // kv_heads
    queries = _QUERIES // 2 if group * new <= _QUERIES // 2 else _QUERIES
    blocks = kv_heads * -(-group * new // queries)
    pairs = batch * blocks
    multiprocessors = _multiprocessors(q.device)
    warps = schedule.warps(head_dim, pairs * tiles / multiprocessors)
    finished = min(group * new, queries)
    splits, windows = schedule.choose(pairs, tiles, extra, finished, multiprocessors, warps)
    parts = splits + (windows > 0)
    patience = _PATIENCE if schedule.waits(pairs, finished, splits, windows, multiprocessors) else 0
    sums, scalars, counters = _scratch(pairs * parts * queries * head_dim, pairs, q.device)
    rounds = (0 if key_queries is not None else len(keys.signs), len(values.signs))
    tensors = {
        "q": q,
        "lengths": lengths,
        "starts": starts,
        "key_tables": _device_tables(keys.tables.packed, q.device),
        "value_tables": _device_tables(values.tables.packed, q.device),
        "key_signs": _sign_words(keys.signs),
        "key_mean": keys.mean,
        "key_queries": key_queries,
        "key_codes": keys.codes,
        "value_codes": values.codes,
        "key_scales": keys.scales,
        "value_scales": values.scales,
        "part_sums": sums,
        "part_scalars": scalars,
        "counters": counters,
        "value_signs": _sign_words(values.signs),
        "out": out,
        "extra_k": extra_k if extra else None,
        "extra_v": extra_v if extra else None,
        "extra_lengths": extra_lengths,
        "extra_mask": extra_mask,
    }
    strides = {
        f"{name}_{axis}": stride
        for name, states in (("q", q), ("k", extra_k), ("v", extra_v))
        if states is not None
        for axis, stride in zip(("batch", "head", "token"), states.stride(), strict=False)
    }
    problem = _Problem(
        **{name: None if x is None else x.data_ptr() for name, x in tensors.items()},
        **strides,
        heads=heads,
        kv_heads=kv_heads,
        group=group,
        new_tokens=new,
        capacity=tiles * 16,
        splits=splits,
        share=-(-(1 << 32) // splits) & 0xFFFFFFFF,
        scaling=scaling / math.log(2),
        key_shrink=head_dim ** (-rounds[0] / 2),
        value_shrink=head_dim ** (-rounds[1] / 2),
        patience=patience,
        extra=extra,
        windows=windows,
    )
    with torch.cuda.device(q.device):
        kernel, shared = _kernel(
            head_dim, keys.bits, values.bits, rounds, _STATES[q.dtype], queries, warps, q.device.index
        )
        kernel((blocks, batch, parts), (warps * 32,), (problem,), shared)
    return out


def _check(
    q: torch.Tensor,
    keys: PackedStates,
    values: PackedStates,
    lengths: torch.Tensor,
    starts: torch.Tensor | None,
    extra_k: torch.Tensor | None,
    extra_v: torch.Tensor | None,
    extra_lengths: torch.Tensor | None,
    extra_mask: torch.Tensor | None,
    key_queries: torch.Tensor | None,
    out: torch.Tensor,
) -> None:
    batch, heads, _, d = q.shape
    kv_heads, tiles = keys.codes.shape[1:3]
    if not q.is_cuda or q.dtype not in _STATES or q.stride(-1) != 1 or heads % kv_heads:
        raise ValueError(
            f"q must be float32, float16 or bfloat16 on a CUDA device, its last dimension contiguous, with a multiple "
            f"of {kv_heads} heads, got {q.dtype} on {q.device}, shape {tuple(q.shape)}, strides {q.stride()}"
        )
    expected: list[tuple[str, torch.Tensor | None, torch.dtype, tuple[int, ...]]] = []
    for role, states in (("key", keys), ("value", values)):
        layout = PackedLayout(d, states.bits, role)
        expected += [
            (f"{role} codes", states.codes, torch.uint8, (batch, kv_heads, tiles, layout.tile_bytes)),
            (f"{role} scales", states.scales, torch.float16, (batch, kv_heads, tiles * 16)),
            (f"{role} signs", states.signs, torch.float32, (min(len(states.signs), _ROUNDS), d)),
            (f"{role} mean", states.mean, torch.float32, (kv_heads, d)),
        ]
        if states.tables.entries.shape != (CHAIN_RATES[states.bits][1], 2, 16):
            raise ValueError(
                f"{role} tables must be [{CHAIN_RATES[states.bits][1]}, 2, 16], got {states.tables.entries.shape}"
            )
    if values.mean is not None:
        raise ValueError("values must have mean None")
    if (extra_k is None) != (extra_v is None):
        raise ValueError("extra_k and extra_v must both be given or both be None")
    width = 0 if extra_k is None else extra_k.shape[2]
    expected += [
        ("lengths", lengths, torch.int32, (batch,)),
        ("starts", starts, torch.int32, (batch,)),
        ("extra_lengths", extra_lengths, torch.int32, (batch,)),
        ("extra_mask", extra_mask, torch.bool, (batch, width)),
        ("key_queries", key_queries, torch.float32, tuple(q.shape)),
        ("out", out, q.dtype, tuple(q.shape)),
    ]
    for name, states in (("extra_k", extra_k), ("extra_v", extra_v)):
        expected.append((name, states, q.dtype, (batch, kv_heads, width, d)))
    for name, tensor, dtype, shape in expected:
        if tensor is None:
            continue
        whole = tensor.is_contiguous() or name in ("extra_k", "extra_v")
        if name in ("extra_k", "extra_v", "out"):
            whole = whole and _in_pieces(tensor)
        if (tensor.dtype, tuple(tensor.shape), tensor.device) != (dtype, shape, q.device) or not whole:
            raise ValueError(
                f"{name} must be {dtype} {list(shape)} on {q.device} and contiguous, got {tensor.dtype} "
                f"{list(tensor.shape)} on {tensor.device} with strides {tensor.stride()}"
            )


def _in_pieces(states: torch.Tensor) -> bool:
    """Whether states [..., head_dim] may be read in pieces of 16 bytes."""
    size, strides = states.element_size(), states.stride()
    return strides[-1] == 1 and all(n * size % 16 == 0 for n in (states.storage_offset(), *strides[:-1]))


@lru_cache(maxsize=16)
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


@lru_cache(maxsize=64)
def _device_tables(data: bytes, device: torch.device) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).to(device)


_words = WeakTensorKeyDictionary()


def _sign_words(signs: torch.Tensor) -> torch.Tensor:
    """Signs float32 [rounds, d] as int32 [32], made once for a tensor: those of the entries that a lane turns.

    Bit ``8 * round + 4 * h + 2 * k + e`` is set where entry ``[h, k, e]`` of the lane is flipped; decode_rotation.cu
    says which element that is.
    """
    held = _words.get(signs)
    if held is None:
        held = _words[signs] = (_flips(signs) << torch.arange(24, device=signs.device)).sum(1).to(torch.int32)
    return held


def _flips(signs: torch.Tensor) -> torch.Tensor:
    """What to flip, int64 [32, 24] of 0 and 1, by lane and bit."""
    rounds, d = signs.shape
    lane, h, k, e = torch.meshgrid(*(torch.arange(n) for n in (32, 2, 2, 2)), indexing="ij")
    near, far = lane % 4 * 2 + e + 8 * k, lane // 4 + 8 * h
    flips = torch.zeros(32, 3, 8, dtype=torch.int64)
    for i in range(rounds):
        row, column = (far, near) if i % 2 else (near, far)
        element = 16 * column + row
        flips[:, i] = ((signs[i].cpu() < 0)[element % d] & (element < d)).flatten(1)
    return flips.flatten(1).to(signs.device)


_scratches: dict[tuple[torch.device, str, int], tuple[torch.Tensor, ...]] = {}
_spares: dict[torch.device, list[tuple[torch.Tensor, ...]]] = {}


def _scratch(numbers: int, pairs: int, device: torch.device) -> tuple[torch.Tensor, ...]:
    """Room for partial results of that many numbers, their scalars, and counters of `pairs` query blocks.

    Every launch leaves them as they were: absent and zero. Launches of a stream share one, and those of a graph have
    their own, since it may be replayed on any stream: a spare, as what is allocated under capture is filled anew at
    every replay. A graph's is never freed.
    """
    if numbers > _NUMBERS or pairs > _PAIRS:
        return _new_scratch(numbers, pairs, device)
    stream = torch.cuda.current_stream(device).cuda_stream
    capture = capture_id(stream) if torch.cuda.is_current_stream_capturing() else None
    key = (device, "stream", stream) if capture is None else (device, "capture", capture)
    spares = _spares.setdefault(device, [])
    if key not in _scratches:
        _scratches[key] = (
            spares.pop() if capture is not None and spares else _new_scratch(_NUMBERS, _PAIRS, device)
        )
    if capture is None and len(spares) < _SPARES:
        spares += [_new_scratch(_NUMBERS, _PAIRS, device) for _ in range(_SPARES - len(spares))]
        torch.cuda.current_stream(device).synchronize()  # a graph may run on another stream
    return _scratches[key]


def _new_scratch(numbers: int, pairs: int, device: torch.device) -> tuple[torch.Tensor, ...]:
    return (
        torch.full((numbers,), -1, dtype=torch.int32, device=device),
        torch.full((numbers // 32,), -1, dtype=torch.int32, device=device),  # two for 64 dimensions or more
        torch.zeros(pairs, 1 + _QUERIES, dtype=torch.int32, device=device),
    )


@lru_cache(maxsize=64)
def _kernel(
    head_dim: int,
    key_bits: float,
    value_bits: float,
    rounds: tuple[int, int],
    state: int,
    queries: int,
    warps: int,
    _device: int,
) -> tuple[Kernel, int]:
    """The kernel of a combination and the bytes of shared memory it takes."""
    (key_p, key_q), (value_p, value_q) = CHAIN_RATES[key_bits], CHAIN_RATES[value_bits]
    names = {
        "HEAD_DIM": head_dim,
        "KEY_P": key_p,
        "KEY_Q": key_q,
        "VALUE_P": value_p,
        "VALUE_Q": value_q,
        "KEY_ROUNDS": rounds[0],
        "VALUE_ROUNDS": rounds[1],
        "STATE": state,
        "QUERIES": queries,
        "WARPS": warps,
    }
    folder = files("tqkv").joinpath("kernels")
    source = "\n".join(folder.joinpath(f"{name}.cu").read_text(encoding="utf-8") for name in _SOURCES)
    module = compile_module(source, tuple(f"-D{name}={value}" for name, value in names.items()))
    # Tables, and what the pairs of warps weigh; then barriers, rings and rotated queries, or in place of these the sums
    # of the pairs, of padded pitch, and what each warp merges.
    pairs, sides = warps // 2, 1 if head_dim == 64 else 2
    words = -(-head_dim // 4 // key_q // 4) * key_q
    rings = pairs * 4 * (16 + 16 + 72 * queries) + queries * (8 * (words + 4) * 4 + 64 + 12)
    sums = pairs * queries * (head_dim + 32 * sides + 4) * 4 + warps * (8 + 256 * 4)
    weighed = queries * (12 * pairs + 8)
    return module.kernel("decode"), 80 + 32 * (key_q + value_q) + weighed + max(rings, sums)
