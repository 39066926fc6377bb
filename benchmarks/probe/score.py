"""Scores of the probe: retrieval by task, length and depth; perplexity; and text that it writes itself.

As a program it scores a folder of weights:
``python benchmarks/probe/score.py --valid wiki_valid.txt --out scores.json`` (`TQ_PROBE` names another folder).
"""

from __future__ import annotations

import argparse
import json
import math
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tasks import TASKS, TaskWriter
from tokenizer import articles, common_words, encode, read_text
from tokenizers import Tokenizer
from torch.nn import functional
from transformers import DynamicCache
from wording import Encoder

from tqbench.kv.probe import load_probe, probe_folder

__all__ = ["DEPTHS", "LENGTHS", "exact_match", "perplexity", "retrieval", "write_text"]

DEPTHS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
LENGTHS = (2048, 4096, 8192, 16384, 32768)


@torch.inference_mode()
def exact_match(model: Any, writer: TaskWriter, task: str, length: int, count: int) -> list[float]:
    """Share of samples whose whole answer is the model's most likely continuation, for each of `DEPTHS`.

    The answer is given token by token (teacher forcing), which for a whole answer is the same as greedy decoding.

    Parameters
    ----------
    model : PreTrainedModel
        A causal language model.
    writer : TaskWriter
        Writes the samples, from a seed that depends on task, length and depth alone.
    task : str
        One of `TASKS`.
    length : int
        Tokens of a sample.
    count : int
        Samples at each depth.
    """
    samples = []
    for depth in DEPTHS:
        writer.reseed(zlib.crc32(f"{task} {length} {depth}".encode()))
        samples += [writer.sample(task, length, depth) for _ in range(count)]
    right = np.zeros(len(samples), bool)
    together = max(1, 65536 // length)
    tail = max(length - sample.start for sample in samples) + 1
    for first in range(0, len(samples), together):
        some = samples[first : first + together]
        ids = torch.from_numpy(np.stack([sample.tokens for sample in some])).to(model.device)
        said = model(ids, use_cache=False, logits_to_keep=tail).logits.argmax(-1)
        for row, sample in enumerate(some):
            guess = said[row, sample.start - 1 - length + tail : sample.stop - 1 - length + tail]
            right[first + row] = bool((guess == ids[row, sample.start : sample.stop]).all())
    return right.reshape(len(DEPTHS), count).mean(1).tolist()


def retrieval(
    model: Any,
    writer: TaskWriter,
    lengths: Sequence[int] = LENGTHS,
    tasks: Sequence[str] = TASKS,
    count: int = 20,
    until: float = math.inf,
) -> list[dict[str, Any]]:
    """Exact match of every task at every length, short lengths first; stops at the time `until` (time.monotonic)."""
    rows: list[dict[str, Any]] = []
    for length in lengths:
        each = count if length < 16384 else max(1, count // 2)
        for task in tasks:
            if time.monotonic() > until:
                return rows
            depths = exact_match(model, writer, task, length, each)
            mean = sum(depths) / len(depths)
            rows.append({
                "task": task, "length": length, "samples": each * len(depths), "exact": mean,
                "by_depth": dict(zip(map(str, DEPTHS), depths, strict=True)),
            })  # fmt: skip
            print(
                f"{task:12} {length:6} {100 * mean:6.1f}  " + " ".join(f"{100 * d:.0f}" for d in depths),
                flush=True,
            )
    return rows


@torch.inference_mode()
def perplexity(model: Any, tokens: np.ndarray, window: int = 2048) -> float:
    """Perplexity of text in windows that do not overlap.

    Parameters
    ----------
    model : PreTrainedModel
        A causal language model; float32 for figures to quote.
    tokens : np.ndarray
        uint16 [n]; what is left after the last whole window is not counted.
    window : int
        Tokens of a window; the first of them is not predicted.
    """
    windows = torch.from_numpy(tokens[: len(tokens) // window * window].astype(np.int64)).view(-1, window)
    total = torch.zeros((), dtype=torch.float64)
    for some in windows.split(max(1, 16384 // window)):
        ids = some.to(model.device)
        logits = model(ids, use_cache=False).logits[:, :-1].float()
        total += (
            functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")
            .double()
            .cpu()
        )
    return math.exp(total.item() / (windows.shape[0] * (window - 1)))


@torch.inference_mode()
def write_text(model: Any, tokenizer: Tokenizer, windows: int = 64, length: int = 2048, seed: int = 0) -> str:
    """Text sampled from the model at temperature one, articles apart by a blank line."""
    generator = torch.Generator(device=model.device).manual_seed(seed)
    ids = torch.zeros(windows, 1, dtype=torch.int64, device=model.device)
    cache, said = DynamicCache(), [ids]
    for _ in range(length):
        logits = model(said[-1], past_key_values=cache, use_cache=True).logits[:, -1].float()
        said.append(torch.multinomial(logits.softmax(-1), 1, generator=generator))
    ids = torch.cat(said, 1)
    written = []
    for row in ids.tolist():
        pieces, piece = [], []
        for token in row:
            if token == 0:
                pieces.append(piece)
                piece = []
            else:
                piece.append(token)
        texts = (tokenizer.decode(part).strip() for part in [*pieces, piece] if part)
        written += [text for text in texts if text]
    return "\n\n".join(written).replace("\r", "") + "\n"


def main() -> None:
    """Score the probe and write the result."""
    parser = argparse.ArgumentParser(description="Score the probe.")
    parser.add_argument("--valid", type=Path, required=True, help="held-out text, UTF-8")
    parser.add_argument("--lengths", default=",".join(map(str, LENGTHS)))
    parser.add_argument(
        "--count", type=int, default=20, help="samples at each depth; half from 16,384 tokens on"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    path = probe_folder() / "tokenizer.json"
    text = read_text(options.valid)
    valid = encode(articles(text), path)
    writer = TaskWriter(Encoder(Tokenizer.from_file(str(path))), common_words(text), valid, 0)
    model, _ = load_probe(torch.float32, options.device)
    scores: dict[str, Any] = {"perplexity": perplexity(model, valid)}
    print(f"perplexity {scores['perplexity']:.3f}", flush=True)
    if options.device != "cpu":
        model = model.bfloat16()
    lengths = [int(length) for length in options.lengths.split(",")]
    scores["retrieval"] = retrieval(model, writer, lengths, count=options.count)
    options.out.write_text(json.dumps(scores, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
