"""What all commands share: one-line errors with exit status 2, JSON, and lists of numbers as options."""

from __future__ import annotations

import functools
import json
import warnings
from collections.abc import Callable
from typing import Any, NoReturn

import click

__all__ = [
    "IntegerList",
    "NumberList",
    "NameList",
    "fail",
    "one_line_errors",
    "print_json",
    "without_renamings",
]


def fail(message: str) -> NoReturn:
    """Print one line on standard error and exit with status 2."""
    click.echo(f"error: {' '.join(str(message).split())}", err=True)
    raise SystemExit(2)


def one_line_errors(function: Callable[..., Any]) -> Callable[..., Any]:
    """Turn a wrong request, a missing package or an unreadable file into one line and exit status 2."""

    @functools.wraps(function)
    def wrapped(*arguments: Any, **options: Any) -> Any:
        from tqbench.errors import BenchError

        try:
            return function(*arguments, **options)
        except ModuleNotFoundError as error:
            fail(f"{error.name} is not installed: pip install 'tqann[bench]'")
        except (BenchError, ValueError, TypeError, OSError) as error:
            fail(str(error))

    return wrapped


def without_renamings() -> None:
    """Leave out what newer releases of transformers say of the one argument name that all releases take."""
    warnings.filterwarnings("ignore", "`past_key_values` is deprecated", FutureWarning)


def print_json(value: Any) -> None:
    """Print a value as JSON on standard output."""
    click.echo(json.dumps(value, indent=1))


# ruff: noqa: ARG002 - click fixes the signature of `convert`


class NameList(click.ParamType):
    """Names separated by commas."""

    name = "names"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        """Split at commas."""
        return value if isinstance(value, tuple) else tuple(filter(None, value.replace(" ", "").split(",")))


class NumberList(click.ParamType):
    """Numbers separated by commas."""

    name = "numbers"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, ...]:
        """Split at commas."""
        if isinstance(value, tuple):
            return value
        try:
            return tuple(float(part) for part in value.split(","))
        except ValueError:
            self.fail(f"{value!r} is not a list of numbers such as 1,2,4", param, ctx)


class IntegerList(NumberList):
    """Whole numbers separated by commas."""

    name = "integers"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, ...]:
        """Split at commas."""
        numbers = super().convert(value, param, ctx)
        if any(number != int(number) for number in numbers):
            self.fail(f"{value!r} is not a list of whole numbers such as 1,16,256", param, ctx)
        return tuple(int(number) for number in numbers)
