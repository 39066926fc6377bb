"""`tq bench all`: every suite in one run."""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from tqbench.everything.options import STEPS, AllOptions

from .output import NameList, one_line_errors, print_json, without_renamings

__all__ = ["all_suites"]

_DEFAULT = AllOptions()


@click.command("all")
@click.option("--quick", is_flag=True, help="Small grids: under 3 minutes on two cores instead of under 20.")
@click.option("--only", type=NameList(), default=(), help=f"Steps, of {', '.join(STEPS)}. Default: all.")
@click.option(
    "--model-id",
    default=_DEFAULT.model_id,
    show_default=True,
    help="The probe of the repository, or a name or folder as transformers takes it.",
)
@click.option("--local-files-only", is_flag=True, help="Use no network.")
@click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "float16", "bfloat16"]),
    default=_DEFAULT.dtype,
    show_default=True,
    help="auto: bfloat16 on a GPU, else float32.",
)
@click.option("--device", default=_DEFAULT.device, show_default=True, help="cpu, cuda, cuda:1, ...")
@click.option("--attn-implementation", default=_DEFAULT.attn_implementation, show_default=True)
@click.option("--text-dir", help="Haystack: a folder of .txt files instead of noise.")
@click.option("--longbench-dir", help="Folder of LongBench's .jsonl files instead of the built-in samples.")
@click.option("--longbench-e", is_flag=True, help="Its files of LongBench-E instead.")
@click.option(
    "--longbench-examples",
    default=_DEFAULT.longbench_examples,
    show_default=True,
    help="Examples of every file of --longbench-dir.",
)
@click.option(
    "--needle-bits",
    default=_DEFAULT.needle_bits,
    show_default=True,
    help="Bits at which needles must be found as in full precision.",
)
@click.option(
    "--longbench-bits",
    default=_DEFAULT.longbench_bits,
    show_default=True,
    help="Bits at which LongBench must score as in full precision.",
)
@click.option(
    "--pq-speedup",
    default=_DEFAULT.pq_speedup,
    show_default=True,
    help="How many times faster than product quantization the index must be built.",
)
@click.option(
    "--scalar-bits",
    default=_DEFAULT.scalar_bits,
    show_default=True,
    help="Bits at which the scalar code must reach --recall.",
)
@click.option(
    "--recall", default=_DEFAULT.recall, show_default=True, help="Recall 10@10 asked of --scalar-bits."
)
@click.option(
    "--repeats", default=_DEFAULT.repeats, show_default=True, help="Timed repeats of every figure of speed."
)
@click.option("--warmup", default=_DEFAULT.warmup, show_default=True, help="Untimed repeats before them.")
@click.option("--seed", default=_DEFAULT.seed, show_default=True)
@click.option("--fresh", is_flag=True, help="Begin anew instead of going on after an interruption.")
@click.option(
    "--out", default=_DEFAULT.out, show_default=True, help="Folder for record, Markdown, PNG and HTML."
)
@click.option("--name", help="File name of the record, without suffix.")
@click.option("--json", "as_json", is_flag=True, help="Print the record as JSON on standard output.")
@one_line_errors
def all_suites(as_json: bool, **given: Any) -> None:
    """Check every claim: theory, model, memory, needles, LongBench, distortion, speed and the index.

    Each check is PASS, WARN, FAIL or SKIP with its threshold and reason, beside the paper's value and the review's.
    Writes a record, Markdown, a PNG and one self-contained HTML page; an interrupted run goes on where it stopped.
    Exit status 1 when a check fails.
    """
    # Threads that spin while they wait make a shared processor ten times slower; read when OpenMP is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    without_renamings()
    from tqbench.check_report import print_checks, read_checks
    from tqbench.checks import exit_status
    from tqbench.everything.report import write_all_report
    from tqbench.everything.run import run_all
    from tqbench.records import record_name, write_record

    options = AllOptions(**given)
    record = run_all(options, lambda line: click.echo(line, err=True))
    name = options.name or record_name(record)
    written = [write_record(record, options.out, name), *write_all_report(record, options.out, name)]
    if as_json:
        print_json(record)
    else:
        from rich.console import Console

        print_checks(record, Console(width=None if sys.stdout.isatty() else 150))
        for path in written:
            click.echo(f"wrote {path}")
    raise SystemExit(exit_status(read_checks(record)))
