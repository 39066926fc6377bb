"""The command group `tq`."""

from __future__ import annotations

import click

from .bench import bench
from .env import env
from .index import index

__all__ = ["cli"]


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="tqann", prog_name="tq")
def cli() -> None:
    """Vector search over compressed codes, without training."""


cli.add_command(bench)
cli.add_command(env)
cli.add_command(index)
