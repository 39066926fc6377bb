"""LongBench from packed caches: predictions of every cache, official scores, and what packing costs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...errors import BenchError
from ...progress import progress_bar
from ...records import new_record
from ..journal import Journal
from ..models import LoadedModel, load_model
from ..options import KVOptions
from .metrics import check_packages, score
from .scores import FULL, score_rows
from .sources import Example, Source, download, read_folder

__all__ = ["run", "show", "write_page"]

_SPARE = 500  # tokens that upstream's model2maxlen leaves of a model's positions
_QUICK = {"length": 2048, "samples": 2}


def run(options: KVOptions, loaded: LoadedModel | None = None) -> dict[str, Any]:
    """Answer every example from every cache and return the record.

    Raw predictions go to a journal, and in LongBench's own format to a folder beside it, which its eval.py reads.

    Raises
    ------
    BenchError
        When the data, the model or a package is missing, a line of the data is not an example, or prompts would be
        too short to be packed.
    """
    sources = None
    if options.data_dir:  # before the model, which takes longer
        sources = read_folder(options.data_dir, options.tasks, options.longbench_e)
        check_packages(source.task for source in sources)
    loaded = loaded or load_model(options)
    length = _max_length(options, loaded.model.config)
    if sources is None:
        sources = download(options.tasks, options.longbench_e, options.local_files_only)
        check_packages(source.task for source in sources)
    samples = options.samples or (_QUICK["samples"] if options.quick else None)
    chosen = [(source, _spread(source.examples, samples)) for source in sources]
    settings = {
        "model": loaded.name,
        "weights": loaded.fingerprint(),
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
        "attn_implementation": loaded.model.config._attn_implementation,
        "device": str(loaded.model.device),
        "max_length": length,
        "chat": not options.no_chat and bool(getattr(loaded.tokenizer, "chat_template", None)),
        "sink_tokens": options.sink_tokens,
        "recent_tokens": options.recent_tokens,
        "decoding": "greedy",
    }
    journal = Journal(options.out, f"kv-longbench-{loaded.name}", settings, options.fresh)
    rows = []
    with progress_bar() as bar:
        task_id = bar.add_task("longbench", total=sum(len(examples) for _, examples in chosen), detail="")
        for source, examples in chosen:
            bar.update(task_id, detail=source.name)
            for example in examples:
                rows += _answered(options, loaded, journal, source, example, settings)
                bar.advance(task_id)
    folder = journal.path.with_suffix("")
    _write_predictions(folder, rows)
    kind = "LongBench-E" if options.longbench_e else "LongBench"
    about = {
        "kind": kind,
        "samples": samples,
        "seed": options.seed,
        "journal": journal.path.name,
        "predictions": folder.name,
        "tasks": {source.name: source.task.name for source in sources},
    }
    return new_record(
        "kv-longbench",
        dataset={"name": loaded.name, "description": loaded.description},
        settings=settings | about,
        results=score_rows(rows, options.seed, options.longbench_e),
    )


def _max_length(options: KVOptions, config: Any) -> int:
    from tqkv.config import TILE_TOKENS

    if len(options.lengths) > 1:
        raise BenchError(f"lengths must be one number for longbench, got {options.lengths}")
    if options.lengths:
        length = options.lengths[0]
    elif options.quick:
        length = _QUICK["length"]
    else:
        length = getattr(config.get_text_config(), "max_position_embeddings", 0) - _SPARE
    least = options.sink_tokens + options.recent_tokens + TILE_TOKENS
    if length <= least:
        raise BenchError(f"lengths must be above the {least} tokens of the cache's window, got {length}")
    return length


def _spread(examples: Sequence[Example], samples: int | None) -> list[Example]:
    """`samples` examples, evenly spread over the file, which may be sorted; all for None."""
    n = len(examples)
    if samples is None or samples >= n:
        return list(examples)
    return [examples[i * n // samples] for i in range(samples)]


def _answered(
    options: KVOptions,
    loaded: LoadedModel,
    journal: Journal,
    source: Source,
    example: Example,
    settings: dict[str, Any],
) -> list[dict[str, Any]]:
    """Scored answers of one example from every cache, from the journal or from the model."""
    named: dict[str, Any] = {f"{p['code']}-{p['bits']:g}": p for p in options.packed()}
    keys = {name: f"{source.name} {example.key} {name}" for name in [FULL, *named]}
    missing = {name: keys[name] for name in keys if journal.get(keys[name]) is None}
    if missing:
        _ask(options, loaded, journal, source, example, settings, named, missing)
    shared = {
        "task": source.name,
        "metric": source.task.metric,
        "key": example.key,
        "bucket": example.bucket,
        "example": example,
    }
    rows = []
    for name, key in keys.items():
        result = journal.get(key)
        value = score(source.task, result["pred"], example.answers, example.classes)
        rows.append(shared | {"cache": name, "score": value} | result)
    return rows


def _ask(
    options: KVOptions,
    loaded: LoadedModel,
    journal: Journal,
    source: Source,
    example: Example,
    settings: dict[str, Any],
    named: dict[str, Any],
    missing: dict[str, str],
) -> None:
    from transformers import DynamicCache

    from tqkv.config import TILE_TOKENS

    from ..answering import answer, prefill, repacked
    from .prompting import make_prompt

    model, task = loaded.model, source.task
    prompt = make_prompt(task, example, loaded.tokenizer, settings["max_length"], settings["chat"])
    full = prefill(model, prompt.context, DynamicCache(config=model.config))
    window = {"sink_tokens": options.sink_tokens, "recent_tokens": options.recent_tokens}
    packs = len(prompt.context) > options.sink_tokens + options.recent_tokens + TILE_TOKENS
    # Full precision comes last, as it adds the question to the states that the others are packed from. A context that
    # fits in the window is never packed: its answer is that of full precision.
    caches = [name for name in missing if name != FULL and packs]
    shared = {"cut": prompt.cut, "tokens": len(prompt.context) + len(prompt.question)}
    for name in [*caches, FULL]:
        cache = full if name == FULL else repacked(model, prompt.context, full, named[name] | window)
        said = answer(
            model,
            prompt.question,
            cache,
            task.answer_tokens,
            _ends(loaded, task.one_line),
            int(task.one_line),
        )
        bits = 0.0 if name == FULL else cache.effective_bits
        result = shared | {
            "pred": loaded.tokenizer.decode(said, skip_special_tokens=True),
            "packed": name != FULL,
            "effective_bits": bits,
        }
        if name in missing:
            journal.put(missing[name], result)
        if name == FULL and not packs:
            for other in missing.keys() - {FULL}:
                journal.put(missing[other], result)


def _ends(loaded: LoadedModel, one_line: bool) -> frozenset[int]:
    """Tokens that end an answer: the model's, or upstream's rule for answers of one line."""
    if one_line:
        newline = loaded.tokenizer.encode("\n", add_special_tokens=False)[-1]
        return frozenset({newline, loaded.tokenizer.eos_token_id} - {None})
    end = getattr(getattr(loaded.model, "generation_config", None), "eos_token_id", None)
    end = loaded.model.config.eos_token_id if end is None else end
    return frozenset(end if isinstance(end, list) else [] if end is None else [end])


def _write_predictions(folder: Path, rows: list[dict[str, Any]]) -> None:
    """FOLDER/CACHE/TASK.jsonl as LongBench's pred.py writes them."""
    files: dict[Path, list[str]] = {}
    for row in rows:
        example = row["example"]
        line = {
            "pred": row["pred"],
            "answers": example.answers,
            "all_classes": example.classes or None,
            "length": example.length,
        }
        path = folder / row["cache"] / f"{row['task'].removesuffix('_e')}.jsonl"
        files.setdefault(path, []).append(json.dumps(line, ensure_ascii=False) + "\n")
    try:
        for path, lines in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(lines), encoding="utf-8", errors="surrogatepass")
    except OSError as error:
        raise BenchError(f"cannot write to {folder}: {error.strerror}") from error


def write_page(record: dict[str, Any], folder: str | Path, name: str) -> tuple[Path, Path]:
    """Write NAME.png and NAME.html."""
    from .plots import write_longbench_page

    return write_longbench_page(record, folder, name)


def show(record: dict[str, Any], console: Any) -> None:
    """Print the scores of every task and cache."""
    from rich.table import Table

    from .plots import COLUMNS, cells

    table = Table(title=f"{record['dataset']['description']}: {record['settings']['kind']}")
    for heading in COLUMNS:
        table.add_column(heading, justify="left" if heading in ("task", "metric", "cache") else "right")
    for row in record["results"]:
        table.add_row(*cells(row))
    console.print(table)
