"""The matrix product of queries and decoded rows, kept on chip: only a bit for each row and query leaves it."""

# pyright: reportMissingImports=false, reportArgumentType=false, reportIndexIssue=false
from __future__ import annotations

import torch
import triton
import triton.language as tl

__all__ = ["BLOCK_QUERIES", "BLOCK_ROWS", "filter_rows"]

BLOCK_QUERIES = 128
BLOCK_ROWS = 256
_BLOCK_DIMS = 64


@triton.jit
def _filter(
    q_ptr,
    y_ptr,
    scale_ptr,
    high_ptr,
    gain_ptr,
    error_ptr,
    threshold_ptr,
    bits_ptr,
    tiles,
    d,
    per_query,
    block_q: tl.constexpr,
    block_n: tl.constexpr,
    block_d: tl.constexpr,
):
    # Queries run fastest: all tiles that share decoded rows are on the chip together.
    program = tl.program_id(0)
    queries = (program % tiles) * block_q + tl.arange(0, block_q)
    rows = (program // tiles) * block_n + tl.arange(0, block_n)
    dims = tl.arange(0, block_d)
    q_at = q_ptr + queries[:, None].to(tl.int64) * d + dims[None, :]
    y_at = y_ptr + rows[:, None].to(tl.int64) * d + dims[None, :]
    total = tl.zeros((block_q, block_n), dtype=tl.float32)
    for _ in range(0, d, block_d):
        total = tl.dot(tl.load(q_at), tl.trans(tl.load(y_at)), total)
        q_at += block_d
        y_at += block_d
    scale = tl.load(scale_ptr + rows)
    high = tl.load(high_ptr + rows)
    gain = tl.load(gain_ptr + queries)
    error = tl.load(error_ptr + queries)
    threshold = tl.load(threshold_ptr + queries)
    upper = scale[None, :] * (total * gain[:, None]) + tl.abs(scale)[None, :] * error[:, None] + high[None, :]
    hit = (upper >= threshold[:, None]) & (high > float("-inf"))[None, :]
    bits = hit.to(tl.int32) << (rows % 32)[None, :]
    words = tl.sum(tl.reshape(bits, (block_q, block_n // 32, 32)), axis=2)
    places = (program // tiles) * (block_n // 32) + tl.arange(0, block_n // 32)
    tl.store(bits_ptr + queries[:, None].to(tl.int64) * per_query + places[None, :], words)


def filter_rows(
    q: torch.Tensor,
    y: torch.Tensor,
    scale: torch.Tensor,
    high: torch.Tensor,
    gain: torch.Tensor,
    error: torch.Tensor,
    threshold: torch.Tensor,
    bits: torch.Tensor,
) -> None:
    """Set the bit of every row whose upper bound reaches its query's threshold, and clear the others.

    Parameters
    ----------
    q : torch.Tensor
        float16 [nq, D], nq a multiple of `BLOCK_QUERIES`, D of 64.
    y : torch.Tensor
        float16 [rows, D], rows a multiple of `BLOCK_ROWS`.
    scale, high : torch.Tensor
        float32 [rows]: factor of the product, and what is added to it; -inf for rows that take no part.
    gain, error, threshold : torch.Tensor
        float32 [nq]: factor of the product, its error bound after that, and the least upper bound that is kept.
    bits : torch.Tensor
        int32 [nq, rows / 32]: bit i % 32 of word i // 32 stands for row i.
    """
    tiles = len(q) // BLOCK_QUERIES
    _filter[(tiles * (len(y) // BLOCK_ROWS),)](
        q,
        y,
        scale,
        high,
        gain,
        error,
        threshold,
        bits,
        tiles,
        q.shape[1],
        bits.shape[1],
        block_q=BLOCK_QUERIES,
        block_n=BLOCK_ROWS,
        block_d=_BLOCK_DIMS,
        num_warps=8,
        num_stages=3,
    )
