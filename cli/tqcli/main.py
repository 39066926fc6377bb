"""Entry point `tq`."""

from __future__ import annotations

import sys
from importlib.util import find_spec

__all__ = ["cli"]

if find_spec("click") is not None:
    from .commands import cli
else:

    def cli() -> None:
        """Say what the command line needs; the library itself works without it."""
        sys.stderr.write("error: tq needs click, which is not installed: pip install 'tqann[bench]'\n")
        raise SystemExit(2)


if __name__ == "__main__":
    cli()
