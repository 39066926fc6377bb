"""`tq bench kv`: what a packed KV cache does to a model."""

from __future__ import annotations

import sys
from typing import Any

import click

from tqbench.kv.registry import SUITES

from .output import IntegerList, NameList, NumberList, one_line_errors, print_json, without_renamings

__all__ = ["kv"]


@click.command()
@click.option(
    "--suite",
    type=click.Choice(list(SUITES)),
    default="needle",
    show_default=True,
    help="; ".join(f"{name}: {what}" for name, (_, what) in SUITES.items()),
)
@click.option(
    "--model-id",
    default="probe",
    show_default=True,
    help="The probe of the repository, a name or folder as transformers takes it, or random:qwen3-8b.",
)
@click.option("--local-files-only", is_flag=True, help="Use no network.")
@click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "float16", "bfloat16"]),
    default="auto",
    show_default=True,
    help="auto: bfloat16 on a GPU, else float32.",
)
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1, ...")
@click.option(
    "--attn-implementation",
    default="auto",
    show_default=True,
    help="auto: turboquant, which reads codes; with any other the cache decodes its states.",
)
@click.option(
    "--bits",
    type=NumberList(),
    default=(),
    help="Bits per dimension. Default: 2,3.5; [distortion] 2,2.5,3,3.5,4.",
)
@click.option(
    "--code",
    type=NameList(),
    default=(),
    help="Of chain, mse, prod. Default: chain; [distortion] all.",
)
@click.option("--seed", default=0, show_default=True)
@click.option("--quick", is_flag=True, help="A small grid.")
@click.option("--lengths", type=IntegerList(), default=(), help="Tokens of context.")
@click.option("--depths", type=NumberList(), default=(), help="[needle] From 0 to 1.")
@click.option(
    "--tasks",
    type=NameList(),
    default=(),
    help="[needle] Of single, multi-key, uuid, multi-value, tracking. Default: all.",
)
@click.option(
    "--samples",
    type=int,
    help="[needle] Samples in every cell. [distortion] Windows of text. [throughput] Tokens decoded.",
)
@click.option("--batches", type=IntegerList(), default=(), help="[throughput, attention] Rows of a batch.")
@click.option("--heads", type=NameList(), default=(), help="[attention] QUERY/KEY-VALUE/DIMENSION: 32/8/128.")
@click.option(
    "--caches", type=NameList(), default=(), help="[throughput] Of those of the report. Default: all."
)
@click.option("--repeats", type=int, help="[throughput, attention] Timed repeats.")
@click.option(
    "--text-dir",
    help="A folder of .txt files: [needle] haystack instead of noise, [distortion] instead of the probe's own.",
)
@click.option("--data-dir", help="[longbench] Folder of <task>.jsonl files; without it they are downloaded.")
@click.option(
    "--longbench-e", is_flag=True, help="[longbench] LongBench-E: <task>_e.jsonl, scores by length."
)
@click.option(
    "--no-chat", is_flag=True, help="[longbench] No chat template, for models without such training."
)
@click.option("--sink-tokens", default=4, show_default=True, help="First tokens in full precision.")
@click.option("--recent-tokens", default=128, show_default=True, help="Last tokens in full precision.")
@click.option("--fresh", is_flag=True, help="Begin anew instead of going on after an interruption.")
@click.option("--out", default="tq-results", show_default=True, help="Folder for record and report.")
@click.option("--name", help="File name of the record, without suffix.")
@click.option("--json", "as_json", is_flag=True, help="Print the record as JSON on standard output.")
@one_line_errors
def kv(as_json: bool, **given: Any) -> None:
    """Measure a packed KV cache on a model: by the answers it gives.

    Writes a record, raw answers as JSON lines where there are any, a PNG and one self-contained HTML page.
    """
    from tqbench.kv.options import KVOptions
    from tqbench.kv.registry import load_suite
    from tqbench.records import record_name, write_record

    without_renamings()
    options = KVOptions(**given)
    suite = load_suite(options.suite)
    record = suite.run(options)
    name = options.name or record_name(record)
    written = [write_record(record, options.out, name), *suite.write_page(record, options.out, name)]
    if as_json:
        print_json(record)
        return
    from rich.console import Console

    suite.show(record, Console(width=None if sys.stdout.isatty() else 150))
    for path in written:
        click.echo(f"wrote {path}")
