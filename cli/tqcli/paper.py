"""`tq bench paper`: the theory of the paper and of its public review."""

from __future__ import annotations

import sys

import click

from .output import one_line_errors, print_json

__all__ = ["paper"]


@click.command()
@click.option("--quick", is_flag=True, help="Fewer vectors and rotations.")
@click.option("--seed", default=0, show_default=True)
@click.option(
    "--out", default="tq-results", show_default=True, help="Folder for record, Markdown, PNG and HTML."
)
@click.option("--name", help="File name of the record, without suffix.")
@click.option("--json", "as_json", is_flag=True, help="Print the record as JSON on standard output.")
@one_line_errors
def paper(quick: bool, seed: int, out: str, name: str | None, as_json: bool) -> None:
    """Check the theory of the TurboQuant paper and of its review: compression, rotation, distortion, bias, error.

    Every check stands beside theory, the paper's printed value and the review's. Writes a record, Markdown, a PNG
    and one self-contained HTML page. Exit status 1 when a check fails.
    """
    from tqbench.check_report import print_checks, read_checks, write_check_report
    from tqbench.checks import exit_status
    from tqbench.paper.measure import PaperSettings
    from tqbench.paper.page import describe, paper_png
    from tqbench.paper.suite import QUICK, run_paper
    from tqbench.records import record_name, write_record

    record = run_paper(PaperSettings(seed=seed, **(QUICK if quick else {})))
    name = name or record_name(record)
    written = [
        write_record(record, out, name),
        *write_check_report(record, out, name, *describe(record), paper_png),
    ]
    if as_json:
        print_json(record)
    else:
        from rich.console import Console

        print_checks(record, Console(width=None if sys.stdout.isatty() else 150))
        for path in written:
            click.echo(f"wrote {path}")
    raise SystemExit(exit_status(read_checks(record)))
