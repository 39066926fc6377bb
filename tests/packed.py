"""Random packed states for the tests of the attention kernel: any bytes are codes."""

import math

import torch

from tqkv.kernels.decode import PackedStates
from tqkv.layout import PackedLayout
from tqkv.tables import byte_tables


def random_states(batch, kv_heads, capacity, d, bits, role, generator, code="chain", mean=False):
    """Packed states of unit variance, and of scales near 1, on the CPU."""
    layout = PackedLayout(d, bits, role)
    tiles = (batch, kv_heads, capacity // 16, layout.tile_bytes)
    codes = torch.randint(0, 256, tiles, dtype=torch.uint8, generator=generator)
    scales = torch.rand(batch, kv_heads, capacity, generator=generator) + 0.5
    signs = torch.randint(0, 2, (3, d), generator=generator) * 2.0 - 1.0
    means = torch.randn(kv_heads, d, generator=generator) if mean else None
    return PackedStates(codes, scales.to(torch.float16), bits, byte_tables(code, d, bits), signs, means)


def moved(states, device):
    """The same states on a device."""
    mean = None if states.mean is None else states.mean.to(device)
    tensors = states.codes.to(device), states.scales.to(device)
    return PackedStates(*tensors, states.bits, states.tables, states.signs.to(device), mean)


def random_problem(
    batch, heads, kv_heads, new, d, lengths, *, bits=3.5, value_bits=None, seed=0, extra=0, **options
):
    """Arguments of `decode_attention`: positional ones, keyword ones."""
    generator = torch.Generator().manual_seed(seed)
    capacity = 16 * max(1, -(-max(lengths) // 16)) + 32
    code = options.pop("code", "chain")
    keys = random_states(
        batch, kv_heads, capacity, d, bits, "key", generator, code, options.pop("mean", False)
    )
    values = random_states(batch, kv_heads, capacity, d, value_bits or bits, "value", generator, code)
    dtype = options.pop("dtype", torch.float32)
    q = torch.randn(batch, heads, new, d, generator=generator).to(dtype)
    keywords = {"scaling": options.pop("scaling", 2 / math.sqrt(d)), **options}
    if extra:
        keywords["extra_k"] = torch.randn(batch, kv_heads, extra, d, generator=generator).to(dtype)
        keywords["extra_v"] = torch.randn(batch, kv_heads, extra, d, generator=generator).to(dtype)
    return (q, keys, values, torch.tensor(lengths, dtype=torch.int32)), keywords
