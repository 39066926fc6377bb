"""The command group `tq`."""

from __future__ import annotations

import click

from .all import all_suites
from .bench import bench
from .env import env
from .index import index
from .kv import kv
from .paper import paper

__all__ = ["cli"]


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="tqann", prog_name="tq")
def cli() -> None:
    """Vector search over compressed codes, without training."""


bench.add_command(all_suites)
bench.add_command(paper)
bench.add_command(kv)
cli.add_command(bench)
cli.add_command(env)
cli.add_command(index)
