"""Needles in a haystack, asked for from the packed cache: exact match over length, depth, task and code."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import BenchError
from ..progress import progress_bar
from ..records import new_record
from .haystack import TASKS, Haystack, Prompt, found_answers, read_texts
from .journal import Journal
from .models import LoadedModel, load_model
from .options import KVOptions

__all__ = ["Grid", "cells", "make_grid", "run", "show", "wilson", "write_page"]

FULL = "full"
"""Name of the cache in full precision."""
_SLACK = 8  # tokens an answer may be longer than the right one, so that wrong ones show


@dataclass(frozen=True)
class Grid:
    """What is asked: every task at every length and depth, so many samples each."""

    tasks: tuple[str, ...] = TASKS
    lengths: tuple[int, ...] = (1024, 2048, 4096)
    depths: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    samples: int = 4

    def points(self) -> Iterator[tuple[str, int, float, int]]:
        """Task, length, depth and number of every sample."""
        for length in self.lengths:
            for task in self.tasks:
                for depth in self.depths:
                    for sample in range(self.samples):
                        yield task, length, depth, sample


def make_grid(options: KVOptions) -> Grid:
    """The grid of `options`; BenchError for unknown tasks."""
    unknown = [task for task in options.tasks if task not in TASKS]
    if unknown:
        raise BenchError(f"tasks must be of {', '.join(TASKS)}, got {', '.join(unknown)}")
    usual = Grid(lengths=(1024,), depths=(0.1, 0.5, 0.8), samples=1) if options.quick else Grid()
    return Grid(
        options.tasks or usual.tasks,
        options.lengths or usual.lengths,
        options.depths or usual.depths,
        options.samples or usual.samples,
    )


def run(options: KVOptions, loaded: LoadedModel | None = None) -> dict[str, Any]:
    """Ask everything and return the record; raw answers go to a journal beside it.

    Raises
    ------
    BenchError
        When the model, text or a package is missing, or a length is too short to be packed.
    """
    grid, text = make_grid(options), read_texts(options.text_dir)
    loaded = loaded or load_model(options)
    settings = {
        "model": loaded.name,
        "weights": loaded.fingerprint(),
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
        "attn_implementation": loaded.model.config._attn_implementation,
        "device": str(loaded.model.device),
        "haystack": Path(options.text_dir).name if options.text_dir else "noise",
        "seed": options.seed,
        "sink_tokens": options.sink_tokens,
        "recent_tokens": options.recent_tokens,
        "decoding": "greedy",
    }
    characters = {"characters": len(text)} if text else {}
    journal = Journal(options.out, f"kv-needle-{loaded.name}", settings | characters, options.fresh)
    haystack = Haystack(loaded.tokenizer, text, introduced=loaded.name != "probe")
    points = list(grid.points())
    rows = []
    with progress_bar() as bar:
        task_id = bar.add_task("needles", total=len(points), detail="")
        for point in points:
            bar.update(task_id, detail=f"{point[0]}, {point[1]} tokens")
            rows += _asked(options, loaded, haystack, journal, *point)
            bar.advance(task_id)
    return new_record(
        "kv-needle",
        dataset={"name": loaded.name, "description": loaded.description},
        settings=settings | {"grid": grid.__dict__ | {}, "journal": journal.path.name},
        results=cells(rows),
    )


def _asked(
    options: KVOptions,
    loaded: LoadedModel,
    haystack: Haystack,
    journal: Journal,
    task: str,
    length: int,
    depth: float,
    sample: int,
) -> list[dict[str, Any]]:
    """Answers of one sample from every cache: from the journal, and from the model what is not there."""
    where = {"task": task, "length": length, "depth": depth, "sample": sample}
    named = {f"{p['code']}-{p['bits']:g}": p for p in options.packed()}
    keys = {name: f"{task} {length} {depth:g} {sample} {name}" for name in [*named, FULL]}
    missing = [name for name in keys if journal.get(keys[name]) is None]
    if missing:
        from transformers import DynamicCache

        from .answering import answer, prefill, repacked

        prompt = haystack.prompt(task, length, depth, options.seed * 100_003 + sample)
        window = {"sink_tokens": options.sink_tokens, "recent_tokens": options.recent_tokens}
        full = prefill(loaded.model, prompt.context, DynamicCache(config=loaded.model.config))
        for name in missing:  # full precision comes last, as it adds the question to the states
            cache = full
            if name != FULL:
                cache = repacked(loaded.model, prompt.context, full, named[name] | window)
            said = answer(
                loaded.model,
                prompt.question,
                cache,
                prompt.answer_tokens + _SLACK,
                _ends(loaded.model),
            )
            result = _scored(prompt, loaded.tokenizer.decode(said))
            packed = 0.0 if name == FULL else cache.effective_bits
            last = len(prompt.context) - options.recent_tokens
            in_codes = all(options.sink_tokens <= place < last for place in prompt.places)
            journal.put(keys[name], result | {"effective_bits": packed, "in_codes": in_codes})
    return [where | {"cache": name} | journal.get(key) for name, key in keys.items()]


def _ends(model: Any) -> frozenset[int]:
    end = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    end = model.config.eos_token_id if end is None else end
    return frozenset(end if isinstance(end, list) else [] if end is None else [end])


def _scored(prompt: Prompt, said: str) -> dict[str, Any]:
    """What was said, whether it is right in any order, and what share of the answers it has (RULER's score)."""
    found = found_answers(prompt, said)
    return {
        "answer": list(prompt.answer),
        "said": said,
        "exact": sorted(found) == sorted(prompt.answer),
        "recall": sum(value in said for value in prompt.answer) / len(prompt.answer),
    }


def wilson(right: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval of a share, 95% by default."""
    if not n:
        return 0.0, 1.0
    share, spread = right / n, z * z / n
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / n + spread / (4 * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def cells(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Accuracy with its interval for every cache, task, length and depth; depth None stands for all of them."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        for depth in (row["depth"], None):
            groups.setdefault((row["cache"], row["task"], row["length"], depth), []).append(row)
    out = []
    for (cache, task, length, depth), group in groups.items():
        n, right = len(group), sum(row["exact"] for row in group)
        low, high = wilson(right, n)
        out.append({
            "cache": cache, "task": task, "length": length, "depth": depth, "n": n, "right": right,
            "accuracy": right / n, "low": low, "high": high,
            "recall": sum(row["recall"] for row in group) / n,
            "in_codes": sum(row["in_codes"] for row in group),
            "effective_bits": sum(row["effective_bits"] for row in group) / n,
        })  # fmt: skip
    return out


def write_page(record: dict[str, Any], folder: str | Path, name: str) -> tuple[Path, Path]:
    """Write NAME.png and NAME.html."""
    from .needle_plots import write_needle_page

    return write_needle_page(record, folder, name)


def show(record: dict[str, Any], console: Any) -> None:
    """Print exact match by cache, task and length, over all depths."""
    from rich.table import Table

    table = Table(title=f"{record['dataset']['description']}: exact match, all depths")
    for heading in (
        "task",
        "tokens",
        "cache",
        "bits",
        "right",
        "exact",
        "95% interval",
        "recall",
        "in codes",
    ):
        table.add_column(heading, justify="left" if heading in ("task", "cache") else "right")
    for row in record["results"]:
        if row["depth"] is None:
            bits = f"{row['effective_bits']:.2f}" if row["effective_bits"] else ""
            table.add_row(
                row["task"], f"{row['length']:,}", row["cache"], bits, f"{row['right']}/{row['n']}",
                f"{row['accuracy']:.2f}", f"{row['low']:.2f} to {row['high']:.2f}", f"{row['recall']:.2f}",
                f"{row['in_codes']}/{row['n']}",
            )  # fmt: skip
    console.print(table)
