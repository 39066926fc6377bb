"""Trains the probe from a text: tokens, network, 8-bit weights, scores, and a text that the probe writes.

``python benchmarks/probe/train.py --text wiki_train.txt.xz --valid wiki_valid.txt --seconds 450 --out FOLDER``
takes under ten minutes of one H200. The folder then holds what `benchmarks/probe/model` holds, a checkpoint in
bfloat16 that ``--init`` goes on from, scores.json and log.txt.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from export import export, load_checkpoint, save_checkpoint, transformers_model
from muon import Muon
from network import Network, Shape
from schedule import RECIPES, Rates, Stage
from score import LENGTHS, perplexity, retrieval, write_text
from tasks import ANSWER, LANGUAGE, TaskWriter
from tokenizer import articles, common_words, encode, read_text
from tokenizers import Tokenizer
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from wording import Encoder

from tqbench.kv.probe import quantize, restore

__all__ = ["main", "train"]

HERE = Path(__file__).resolve().parent
ANSWER_WEIGHT = 0.7  # of the mean loss of answers beside the mean loss of text
FEWEST_ANSWERS = 200.0  # below so many answer tokens in a batch their mean is damped
START_STEPS = 8  # not timed: compilation


class _Batches(IterableDataset):
    """Endless batches of the present stage, written by worker processes."""

    def __init__(
        self,
        tokenizer: Path,
        words: list[str],
        text: Path,
        stages: tuple[Stage, ...],
        stage: Any,
        tokens: int,
        seed: int,
    ) -> None:
        self.tokenizer, self.words, self.text = tokenizer, words, text
        self.stages, self.stage, self.tokens, self.seed = stages, stage, tokens, seed

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        worker = get_worker_info()
        number = worker.id if worker else 0
        text = np.memmap(self.text, dtype=np.uint16, mode="r")
        encoder = Encoder(Tokenizer.from_file(str(self.tokenizer)))
        writer = TaskWriter(encoder, self.words, text, self.seed * 1000 + number)
        while True:
            mixture = self.stages[self.stage.value].mixture
            length = writer.choice.choices(mixture.lengths, mixture.shares)[0]
            tokens, labels = writer.batch(self.tokens, length, mixture)
            yield torch.from_numpy(tokens), torch.from_numpy(labels)


def loss_weights(labels: torch.Tensor) -> torch.Tensor:
    """Weights of the two means, over text and over answers, of labels [n]: float32 [2, n]."""
    text, answers = (labels == LANGUAGE).float(), (labels == ANSWER).float()
    return torch.stack([text / text.sum().clamp(min=1.0), answers / answers.sum().clamp(min=FEWEST_ANSWERS)])


def train(
    network: Network,
    batches: Any,
    stages: tuple[Stage, ...],
    stage: Any,
    rates: Rates,
    seconds: float,
    log: TextIO,
    most_steps: int | None = None,
) -> dict[str, float]:
    """Train until `seconds` have passed; learning rates follow the share of time that has passed.

    Parameters
    ----------
    network : Network
        Trained in place.
    batches : iterator
        Gives tokens int64 [batch, length + 1] and labels uint8 of the same shape.
    stages : tuple of Stage
        The curriculum.
    stage : multiprocessing.Value
        Number of the present stage, which the workers read.
    rates : Rates
        Learning rates and warm-up.
    seconds : float
        Time, compilation apart.
    log : TextIO
        A line every few seconds.
    most_steps : int, optional
        Stop after so many steps.

    Returns
    -------
    dict
        `steps`, `tokens`, `seconds`.
    """
    parameters = network.parameters
    embedding = parameters["model.embed_tokens.weight"]
    vectors = [p for p in parameters.values() if p.dim() == 1]
    muon = Muon(network.matrices())
    adam = torch.optim.AdamW(
        [
            {"params": [embedding], "lr": 0.0, "weight_decay": 0.01, "peak": rates.embedding},
            {"params": vectors, "lr": 0.0, "weight_decay": 0.0, "peak": rates.vectors},
        ],
        betas=(0.9, 0.98), eps=1e-10, fused=network.device != "cpu",
    )  # fmt: skip
    sums = torch.zeros(4, device=network.device)
    begun = told = time.monotonic()
    steps = tokens = told_tokens = 0
    waited = 0.0
    while True:
        asked = time.monotonic()
        ids, labels = next(batches)
        waited += time.monotonic() - asked
        passed = (time.monotonic() - begun) / seconds if steps >= START_STEPS else 0.0
        if passed >= 1 or (most_steps is not None and steps >= most_steps):
            break
        rate = rates.multiplier(steps, passed)
        ids, labels = (t.to(network.device, non_blocking=True) for t in (ids, labels))
        marks = labels[:, 1:].reshape(-1)
        text_and_answers, right = network.losses(
            ids[:, :-1].contiguous(), ids[:, 1:].contiguous(), loss_weights(marks)
        )
        (text_and_answers[0] + ANSWER_WEIGHT * text_and_answers[1]).backward()
        torch.nn.utils.clip_grad_norm_([embedding, *vectors], 1.0)
        for group in adam.param_groups:
            group["lr"] = group["peak"] * rate
        adam.step()
        adam.zero_grad(set_to_none=True)
        muon.step(rates.matrices * rate)
        sums += torch.stack([*text_and_answers.detach(), right.float(), (marks == ANSWER).sum().float()])
        steps += 1
        tokens += marks.numel()
        told_tokens += marks.numel()
        if steps == START_STEPS:
            if network.device != "cpu":
                torch.cuda.synchronize()
            print(f"first {steps} steps: {time.monotonic() - begun:.1f} s", file=log, flush=True)
            begun = told = time.monotonic()
            waited, told_tokens, told_steps = 0.0, 0, steps
            sums.zero_()
        elif steps > START_STEPS and time.monotonic() - told > 8:
            text, answer, correct, asked_for = sums.tolist()  # waits for the device
            now = time.monotonic()
            if not math.isfinite(text):
                raise FloatingPointError(f"the loss is {text} at step {steps}")
            done = steps - told_steps
            print(
                f"{now - begun:5.0f} s  step {steps:6}  stage {stage.value}  rate {rate:.3f}  "
                f"{told_tokens / (now - told) / 1e3:6.0f} k/s  waited {waited / (now - told):4.0%}  "
                f"text {text / done:.4f}  answers {answer / done:.4f}  right {correct / max(1, asked_for):.4f}",
                file=log, flush=True,
            )  # fmt: skip
            told, waited, told_tokens, told_steps = now, 0.0, 0, steps
            sums.zero_()
        while stage.value + 1 < len(stages) and passed >= stages[stage.value + 1].start:
            stage.value += 1
    return {"steps": steps, "tokens": tokens, "seconds": round(time.monotonic() - begun, 1)}


class _Log:
    """Lines to a file and to the screen."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w", encoding="utf-8")

    def write(self, text: str) -> int:
        print(text, end="", flush=True)
        return self._file.write(text)

    def flush(self) -> None:
        self._file.flush()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train the probe.")
    parser.add_argument("--text", type=Path, required=True, help="training text, UTF-8, plain or .xz")
    parser.add_argument("--valid", type=Path, required=True, help="held-out text, plain or .xz")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument(
        "--seconds", type=float, default=450.0, help="of training, compilation and scoring apart"
    )
    parser.add_argument(
        "--limit", type=float, default=math.inf, help="seconds in all: scoring stops at this time"
    )
    parser.add_argument("--init", type=Path, help="folder with a checkpoint, or 8-bit weights, to go on from")
    parser.add_argument(
        "--recipe", choices=sorted(RECIPES), help="curriculum and rates (full; with --init, more)"
    )
    parser.add_argument("--tokenizer", type=Path, default=HERE / "model" / "tokenizer.json")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tokens", type=int, default=65536, help="of a step")
    parser.add_argument("--steps", type=int, help="stop after so many steps")
    parser.add_argument("--workers", type=int, default=max(1, min(6, (os.cpu_count() or 2) - 2)))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=20, help="test samples at each depth")
    parser.add_argument(
        "--small", action="store_true", help="a small network and short tests, to try the program"
    )
    return parser.parse_args()


def main() -> None:
    """Train, export, score and write."""
    began = time.monotonic()
    options = _options()
    options.out.mkdir(parents=True, exist_ok=True)
    log: Any = _Log(options.out / "log.txt")

    def say(text: str) -> None:
        print(f"[{time.monotonic() - began:5.1f}] {text}", file=log, flush=True)

    cuda = options.device.startswith("cuda")
    say(f"torch {torch.__version__}, {options.device}, {os.cpu_count()} cores")
    tokenizer = Tokenizer.from_file(str(options.tokenizer))
    whole = read_text(options.text)
    words = common_words(whole)
    processes = os.cpu_count() or 1
    text = encode(articles(whole), options.tokenizer, processes)
    del whole
    valid = encode(articles(read_text(options.valid)), options.tokenizer, processes)
    text.tofile(options.out / "train.u16")
    say(f"{len(text)} tokens to train on, {len(valid)} held out, {len(words)} words")

    recipe = RECIPES[options.recipe or ("more" if options.init else "full")]
    stage = multiprocessing.get_context("fork").Value("i", 0)
    dataset = _Batches(
        options.tokenizer,
        words,
        options.out / "train.u16",
        recipe.stages,
        stage,
        options.tokens,
        options.seed,
    )
    loader = DataLoader(
        dataset, batch_size=None, num_workers=options.workers, prefetch_factor=4, pin_memory=cuda,
        multiprocessing_context="fork",
    )  # fmt: skip
    batches = iter(loader)
    torch.set_float32_matmul_precision("high")
    shape = Shape(hidden_size=64, num_hidden_layers=2, intermediate_size=128) if options.small else Shape()
    network = Network(shape, options.device, torch.bfloat16 if cuda else torch.float32, seed=options.seed)
    if options.init:
        network.load(load_checkpoint(options.init))
    if cuda:
        network.compile()
    # At 8,192 tokens and more cuDNN's attention takes about half the time of the flash kernel.
    with sdpa_kernel([SDPBackend.CUDNN_ATTENTION]) if cuda else nullcontext():
        done = train(
            network, batches, recipe.stages, stage, recipe.rates, options.seconds, log, options.steps
        )
    del batches, loader
    (options.out / "train.u16").unlink()
    state = {name: p.detach() for name, p in network.parameters.items()}
    save_checkpoint(state, options.out)
    export(shape, state, tokenizer, options.out)
    memory = round(torch.cuda.max_memory_allocated() / 2**30, 1) if cuda else None
    say(f"{done['steps']} steps, {done['tokens']} tokens, {done['seconds']} s; memory {memory} GiB; exported")

    torch.set_float32_matmul_precision("highest")
    dtype = torch.bfloat16 if cuda else torch.float32
    rounded = {name: value.to(value.device) for name, value in restore(quantize(state)).items()}
    scores: dict[str, Any] = {
        "training": done | {"recipe": recipe.name, "seed": options.seed},
        "parameters": sum(value.numel() for value in state.values()),
        "perplexity": {}, "retrieval": {},
    }  # fmt: skip
    lengths = [length for length in LENGTHS if not options.small or length <= 2048]
    writer = TaskWriter(Encoder(tokenizer), words, valid, 0)
    models = {"float32": state, "int8": rounded}
    for name, weights in models.items():
        model = transformers_model(shape, weights, options.device, torch.float32)
        scores["perplexity"][name] = perplexity(model, valid[:20480] if options.small else valid)
        say(f"perplexity of all held-out text at 2,048 tokens, {name}: {scores['perplexity'][name]:.4f}")
    until = began + options.limit

    def score(name: str, count: int, before: float) -> None:
        model = transformers_model(shape, models[name], options.device, dtype)
        say(f"retrieval, {name} weights, computed in {str(dtype).removeprefix('torch.')}")
        scores["retrieval"][name] = retrieval(model, writer, lengths, count=count, until=before)
        (options.out / "scores.json").write_text(json.dumps(scores, indent=1) + "\n", encoding="utf-8")

    score("int8", options.count, until - 30)  # what is kept, so it comes first
    written = write_text(
        transformers_model(shape, rounded, options.device, dtype), tokenizer,
        *((2, 64) if options.small else (64, 2048)),
    )  # fmt: skip
    (options.out / "text.txt").write_text(written, encoding="utf-8")
    say(f"wrote {len(written)} characters")
    score("float32", max(1, options.count // 4), until)
    say("done")


if __name__ == "__main__":
    main()
