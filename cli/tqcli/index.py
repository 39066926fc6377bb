"""`tq index`: the index on a user's own files."""

from __future__ import annotations

from typing import Any

import click

from tqbench.errors import BenchError

from .output import one_line_errors, print_json

__all__ = ["index"]


@click.group()
def index() -> None:
    """Build, search and inspect index files."""


@index.command()
@click.argument("vectors")
@click.argument("output")
@click.option(
    "--bits",
    default=4.0,
    show_default=True,
    help="Bits per dimension: any number from 0.5 to 8 for chain, 1 to 8 for the rest.",
)
@click.option(
    "--code", type=click.Choice(["chain", "layered", "mse", "prod"]), default="chain", show_default=True
)
@click.option("--memory", type=click.IntRange(2, 3), default=2, show_default=True, help="Of the chain code.")
@click.option("--metric", type=click.Choice(["l2", "ip", "cosine"]), default="l2", show_default=True)
@click.option(
    "--plan",
    type=click.Choice(["oblivious", "calibrated", "auto"]),
    default="oblivious",
    show_default=True,
    help="Of the chain code: calibrated fits the code to the vectors, auto when there are enough of them.",
)
@click.option("--ids", help="File with one integer id a vector (npy or ivecs); default: positions.")
@click.option("--column", help="Column of a parquet file, dataset of an HDF5 file.")
@click.option("--seed", default=0, show_default=True, help="Of the rotation.")
@click.option("--threads", default=0, help="0 takes all cores.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@one_line_errors
def build(
    vectors: str,
    output: str,
    bits: float,
    code: str,
    memory: int,
    metric: str,
    plan: str,
    ids: str | None,
    column: str | None,
    seed: int,
    threads: int,
    as_json: bool,
) -> None:
    """Index the rows of VECTORS (npy, fvecs, bvecs, HDF5, parquet) and write the index to OUTPUT."""
    from time import perf_counter

    from tqann import TurboQuantIndex
    from tqbench.progress import track
    from tqbench.sources.files import read_vectors

    x = read_vectors(vectors, column=column)
    own = None if ids is None else _read_ids(ids, len(x))
    built = TurboQuantIndex(
        x.shape[1], bits, metric, code=code, memory=memory, plan=plan, seed=seed, threads=threads
    )
    start = perf_counter()
    if plan == "calibrated":
        built.calibrate(x)
    step = 65536
    for at in track(range(0, len(x), step), "add", total=-(-len(x) // step)):
        if own is None:
            built.add(x[at : at + step])
        else:
            built.add_with_ids(x[at : at + step], own[at : at + step])
    seconds = perf_counter() - start
    built.save(output)
    described = {**_describe(built, output), "seconds": round(seconds, 4)}
    if as_json:
        print_json(described)
    else:
        click.echo(f"{_sentence(described)}; built in {seconds:.2f} s, wrote {output}")


@index.command()
@click.argument("path")
@click.argument("queries")
@click.option("-k", default=10, show_default=True, help="Neighbours a query.")
@click.option("--out", help="Write NAME.ids.npy and NAME.distances.npy for this NAME.")
@click.option("--nq", type=click.IntRange(min=1), help="At most so many queries.")
@click.option("--column", help="Column of a parquet file, dataset of an HDF5 file.")
@click.option("--mmap", is_flag=True, help="Map the index file instead of reading it.")
@click.option("--json", "as_json", is_flag=True, help="Print ids and distances as JSON.")
@one_line_errors
def search(
    path: str,
    queries: str,
    k: int,
    out: str | None,
    nq: int | None,
    column: str | None,
    mmap: bool,
    as_json: bool,
) -> None:
    """Search the index file PATH for the rows of QUERIES."""
    import numpy as np

    from tqbench.sources.files import read_vectors

    loaded = _load(path, mmap)
    xq = read_vectors(queries, column=column)[:nq]
    D, I = loaded.search(xq, k)  # noqa: E741 - FAISS's names
    if out is not None:
        np.save(f"{out}.ids.npy", I)
        np.save(f"{out}.distances.npy", D)
        click.echo(f"wrote {out}.ids.npy and {out}.distances.npy, {len(I)} x {k}", err=as_json)
    if as_json:
        print_json({"k": k, "metric": loaded.metric, "ids": I.tolist(), "distances": D.tolist()})
    elif out is None:
        for row, (found, distances) in enumerate(zip(I, D, strict=True)):
            click.echo(f"{row}: " + " ".join(f"{i}:{v:.4g}" for i, v in zip(found, distances, strict=True)))


@index.command()
@click.argument("path")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@one_line_errors
def info(path: str, as_json: bool) -> None:
    """Say what the index file PATH holds."""
    described = _describe(_load(path, mmap=True), path)
    if as_json:
        print_json(described)
    else:
        click.echo(_sentence(described))


def _load(path: str, mmap: bool) -> Any:
    from pathlib import Path

    from tqann import read_index

    if not Path(path).is_file():
        raise BenchError(f"no such file: {path}")
    return read_index(path, mmap=mmap)


def _read_ids(path: str, n: int) -> Any:
    import numpy as np

    from tqbench.sources.files import read_vectors

    ids = np.load(path, allow_pickle=False) if path.endswith(".npy") else read_vectors(path, dtype=None)
    ids = ids.reshape(-1)
    if ids.dtype.kind not in "iu" or len(ids) != n:
        raise BenchError(f"ids must be {n} integers, one a vector, got {len(ids)} of dtype {ids.dtype}")
    return ids.astype(np.int64)


def _describe(opened: Any, path: str) -> dict[str, Any]:
    from pathlib import Path

    config = opened.quantizer.config()
    size = Path(path).stat().st_size
    return {
        "ntotal": opened.ntotal,
        "d": opened.d,
        "bits": opened.bits,
        "code": config["code"],
        "metric": opened.metric,
        "bytes_per_vector": opened.sa_code_size(),
        "file_bytes": size,
        "compression": round(4 * opened.d / opened.sa_code_size(), 2),
        "plan": "oblivious" if opened.plan is None else "calibrated",
        "quantizer": config,
    }


def _sentence(described: dict[str, Any]) -> str:
    plan = "" if described["plan"] == "oblivious" else " (calibrated)"
    code = f"{described['code']}{plan} at {described['bits']:g} bits, metric {described['metric']}"
    size = f"{described['bytes_per_vector']} bytes a vector with scalars"
    return (
        f"{described['ntotal']:,} vectors, d = {described['d']}, {code}: {size} "
        f"({described['compression']:g} times below float32), {described['file_bytes']:,} bytes on disk"
    )
