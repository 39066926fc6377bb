"""`tq bench`: comparisons."""

from __future__ import annotations

import sys
from typing import Any

import click

from tqbench.methods import DEFAULT_BITS, METHODS, ON_REQUEST
from tqbench.sources import SOURCES, SourceOptions
from tqbench.speed.grid import FULL, QUICK, SETS, SPEED_METHODS

from .output import IntegerList, NameList, NumberList, one_line_errors, print_json

__all__ = ["bench"]

_SOURCES = "Where the vectors come from: " + "; ".join(
    f"{name}: {what}" for name, (_, _, what) in SOURCES.items()
)
_METHODS = f"Comma-separated: {', '.join(METHODS)}; or all. Default: all but {', '.join(sorted(ON_REQUEST))}."


@click.group()
def bench() -> None:
    """Measure tqann against its rivals."""


@bench.command()
@click.option(
    "--source", type=click.Choice(list(SOURCES)), default="sample", show_default=True, help=_SOURCES
)
@click.option("--methods", type=NameList(), default="", help=_METHODS)
@click.option(
    "--bits",
    type=NumberList(),
    default=",".join(f"{b:g}" for b in DEFAULT_BITS),
    show_default=True,
    help="Bits per dimension, comma-separated.",
)
@click.option("--quick", is_flag=True, help="Leave out methods that train for long.")
@click.option("-k", default=10, show_default=True, help="Neighbours asked for.")
@click.option("--n", type=int, help="At most so many base vectors.")
@click.option("--nq", type=int, help="At most so many queries.")
@click.option("--metric", type=click.Choice(["l2", "ip", "cosine"]), help="Default: the source's own.")
@click.option("--repeats", default=3, show_default=True, help="Interleaved repeats of every figure of speed.")
@click.option("--threads", default=0, help="Threads for every method; 0 takes all cores.")
@click.option("--memory/--no-memory", default=True, show_default=True, help="Measure resident memory.")
@click.option("--seed", default=0, show_default=True)
@click.option("--out", default="tq-results", show_default=True, help="Folder for record, PNG and HTML.")
@click.option("--name", help="File name of the record, without suffix.")
@click.option("--json", "as_json", is_flag=True, help="Print the record as JSON on standard output.")
@click.option("--base", help="[file] Vectors to index.")
@click.option("--queries", help="[file] Queries; without them some base vectors are set apart.")
@click.option("--held-out", help="[file] Training vectors for the methods that train.")
@click.option("--column", help="[file] Column of a parquet file, dataset of an HDF5 file.")
@click.option("--d", default=256, show_default=True, help="[synthetic] Dimensions.")
@click.option(
    "--kind",
    type=click.Choice(["isotropic", "clustered", "uncentred"]),
    default="isotropic",
    show_default=True,
    help="[synthetic] Distribution.",
)
@click.option("--model-id", default="Qwen/Qwen3-0.6B", show_default=True, help="[qwen] Model name or folder.")
@click.option(
    "--pooling", type=click.Choice(["mean", "last"]), default="mean", show_default=True, help="[qwen]"
)
@click.option("--layer", default=-1, show_default=True, help="[qwen] Hidden state, 0 being the embeddings.")
@click.option("--batch-size", default=16, show_default=True, help="[qwen] Passages at a time.")
@click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "float16", "bfloat16"]),
    default="auto",
    show_default=True,
    help="[qwen] Of the model.",
)
@click.option(
    "--device",
    default="auto",
    show_default=True,
    help="cuda compares on the GPU: ours, faiss-gpu, a bfloat16 product. [qwen] cpu, cuda, cuda:1, ...",
)
@click.option("--local-files-only", is_flag=True, help="[qwen] Use no network.")
@click.option("--text-dir", help="[qwen] Folder of .txt files instead of a corpus of the hub.")
@click.option(
    "--dataset",
    default=SourceOptions.dataset,
    show_default=True,
    help="[qwen] NAME:CONFIG:SPLIT:COLUMN of a corpus of the hub.",
)
@click.option("--max-passages", default=6000, show_default=True, help="[qwen] Vectors in all.")
@click.option("--max-length", default=128, show_default=True, help="[qwen] Tokens a passage.")
@click.option(
    "--cache/--no-cache", "use_cache", default=True, show_default=True, help="[qwen] Keep vectors on disk."
)
@one_line_errors
def ann(
    source: str,
    methods: tuple[str, ...],
    bits: tuple[float, ...],
    quick: bool,
    k: int,
    repeats: int,
    threads: int,
    memory: bool,
    out: str,
    name: str | None,
    as_json: bool,
    **source_options: Any,
) -> None:
    """Compare indexes on one set of vectors: recall, bytes, speed and build time.

    Prints a table a bit width, and writes a record, a PNG and one self-contained HTML page.
    """
    from tqbench.records import record_name, write_record
    from tqbench.report import write_report
    from tqbench.suites import run_ann

    options = SourceOptions(**source_options)
    if options.device.startswith("cuda"):
        _ann_on_device(source, options, methods, bits, k, repeats, out, name, as_json)
        return
    record = run_ann(
        source,
        options,
        methods=methods,
        bits=bits,
        quick=quick,
        k=k,
        repeats=repeats,
        threads=threads,
        memory=memory,
    )
    name = name or record_name(record)
    written = [write_record(record, out, name), *write_report(record, out, name)]
    if as_json:
        print_json(record)
        return
    from rich.console import Console

    from tqbench.display import print_record

    print_record(record, Console())
    for path in written:
        click.echo(f"wrote {path}")


def _ann_on_device(
    source: str,
    options: SourceOptions,
    methods: tuple[str, ...],
    bits: tuple[float, ...],
    k: int,
    repeats: int,
    out: str,
    name: str | None,
    as_json: bool,
) -> None:
    """Compare on a CUDA device; print a table, and write a record and a PNG."""
    from tqbench.on_device import run_device_ann

    record = run_device_ann(source, options, methods=methods, bits=bits, k=k, repeats=repeats)
    _show_on_device([record], out, name, as_json)


def _show_on_device(records: list[dict[str, Any]], out: str, name: str | None, as_json: bool) -> None:
    """Write records of a CUDA device with their PNGs, and print them as tables or JSON."""
    from rich.console import Console

    from tqbench.device_picture import write_device_picture
    from tqbench.on_device import print_device_record
    from tqbench.records import record_name, write_record

    written = []
    for record in records:
        own = (
            f"{name}-{record['dataset']['name']}"
            if name and len(records) > 1
            else name or record_name(record)
        )
        written += [write_record(record, out, own), write_device_picture(record, out, own)]
        if not as_json:
            print_device_record(record, Console(width=None if sys.stdout.isatty() else 150))
    if as_json:
        print_json(records[0] if len(records) == 1 else records)
        return
    for path in written:
        click.echo(f"wrote {path}")


def _axis(name: str) -> str:
    """Default and full values of an axis of the grid, for help."""
    quick, full = (",".join(f"{v:g}" for v in getattr(grid, name)) for grid in (QUICK, FULL))
    return f"Default {quick}; with --full {full}."


@bench.command()
@click.option("--full", is_flag=True, help="The whole grid and the large updates: hours.")
@click.option(
    "--sets", type=NameList(), default="", help=f"Comma-separated: {', '.join(SETS)}. Default: all."
)
@click.option("--d", type=IntegerList(), default=(), help=f"Dimensions. {_axis('d')}")
@click.option("--bits", type=NumberList(), default=(), help=f"Bits per dimension. {_axis('bits')}")
@click.option("--n", type=IntegerList(), default=(), help=f"Base vectors. {_axis('n')}")
@click.option("--nq", type=IntegerList(), default=(), help=f"Queries a call. {_axis('nq')}")
@click.option("-k", "--k", type=IntegerList(), default=(), help=f"Neighbours. {_axis('k')}")
@click.option("--threads", type=IntegerList(), default=(), help=f"Threads. {_axis('threads')}")
@click.option(
    "--methods",
    type=NameList(),
    default="",
    help=f"Comma-separated: {', '.join(SPEED_METHODS)}. Default: all.",
)
@click.option("--base", help="Real embeddings to index instead of the sample, taken at unit length.")
@click.option("--queries", help="Their queries; without them some base vectors are set apart.")
@click.option("--column", help="Column of a parquet file, dataset of an HDF5 file.")
@click.option("--repeats", default=3, show_default=True, help="Interleaved repeats of every figure.")
@click.option("--updates/--no-updates", default=True, show_default=True, help="Add, remove, filter, threads.")
@click.option(
    "--device",
    type=click.Choice(["cpu", "cuda"]),
    default="cpu",
    show_default=True,
    help="cuda measures on the GPU, beside faiss-gpu and a bfloat16 product, with its own defaults of the axes.",
)
@click.option(
    "--updates-n",
    type=int,
    help="Vectors of the updates. Default 20,000, with --full 100,000; 1,000,000 for one query by threads.",
)
@click.option("--seed", default=0, show_default=True)
@click.option("--out", default="tq-results", show_default=True, help="Folder for record, PNG and HTML.")
@click.option("--name", help="File name of the record, without suffix.")
@click.option("--json", "as_json", is_flag=True, help="Print the record as JSON on standard output.")
@one_line_errors
def speed(
    full: bool,
    methods: tuple[str, ...],
    base: str | None,
    queries: str | None,
    column: str | None,
    repeats: int,
    updates: bool,
    device: str,
    updates_n: int | None,
    seed: int,
    out: str,
    name: str | None,
    as_json: bool,
    **axes: tuple[Any, ...],
) -> None:
    """Search speed beside the fast rivals in every cell of a grid, all in one interleaved run.

    Prints our speed and recall, the fastest rival's, and the fastest of equal recall; what share of the machine's
    limits we reach; updates; our fastest code of any width that finds no less in no more bytes; and the medians of the
    ratios. Writes a record, a PNG and one HTML page.
    """
    if device == "cuda":
        from tqbench.on_device import run_device_speed

        own: dict[str, Any] = {axis: axes[axis] for axis in ("n", "d", "nq", "bits", "k")}
        _show_on_device(run_device_speed(**own, repeats=repeats, seed=seed), out, name, as_json)
        return
    from tqbench.records import record_name, write_record
    from tqbench.speed.cells import SpeedSettings
    from tqbench.speed.grid import make_grid
    from tqbench.speed.page import write_speed_report
    from tqbench.speed.suite import run_speed, update_settings

    grid = make_grid(full, **axes)
    record = run_speed(
        grid,
        SourceOptions(base=base, queries=queries, column=column, seed=seed),
        methods=methods,
        settings=SpeedSettings(repeats=repeats),
        updates=update_settings(full, updates_n, max(grid.threads), methods) if updates else None,
    )
    name = name or record_name(record)
    written = [write_record(record, out, name), *write_speed_report(record, out, name)]
    if as_json:
        print_json(record)
        return
    from rich.console import Console

    from tqbench.speed.display import print_speed

    print_speed(record, Console(width=None if sys.stdout.isatty() else 150))
    for path in written:
        click.echo(f"wrote {path}")
