"""Mutation testing: small faults are put into a module one by one, and its tests must fail.

    python tests/mutants.py                      # all modules of TESTS, some hours of one core
    python tests/mutants.py tqann/io.py --sample 60

A mutant lives in a forked process alone, as other code of the module's own functions. Survivors, and why they are,
stand in `mutants.md`. Needs a system with fork and the project installed with -e.
"""

from __future__ import annotations

import argparse
import ast
import copy
import importlib
import inspect
import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

import hypothesis  # noqa: F401 - once here and not in every fork
import numpy  # noqa: F401 - as above
import pytest

ROOT = Path(__file__).resolve().parent.parent
TESTS = {
    "tqcore/packing.py": ["tqcore/test_packing.py"],
    "tqcore/reference/packing.py": ["tqcore/test_packing.py", "tqcore/test_reference.py"],
    "tqcore/plan.py": ["tqcore/test_plan.py", "tqcore/test_calibration.py", "tqann/test_plans.py"],
    "tqann/format.py": ["tqann/test_io.py", "tqann/test_fuzz.py"],
    "tqann/io.py": [
        "tqann/test_io.py",
        "tqann/test_save.py",
        "tqann/test_refinement.py",
        "tqann/test_journal.py",
    ],
    "tqann/files.py": ["tqann/test_save.py", "tqann/test_sync.py"],
    "tqann/journal.py": ["tqann/test_journal.py", "tqann/test_sync.py", "tqann/test_fuzz.py"],
    "tqann/sync.py": ["tqann/test_sync.py", "tqann/test_journal.py"],
}
COMPARISONS = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
OPERATORS = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
KILLED, SURVIVED, SLOW = "killed", "survived", "too slow"


def variants(node: ast.AST) -> Iterator[ast.AST]:
    """The faults that can be put in place of `node`."""
    if isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARISONS:
        yield ast.Compare(node.left, [COMPARISONS[type(node.ops[0])](), *node.ops[1:]], node.comparators)
    elif isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        yield ast.BinOp(node.left, OPERATORS[type(node.op)](), node.right)
    elif isinstance(node, ast.BoolOp):
        yield ast.BoolOp(ast.Or() if isinstance(node.op, ast.And) else ast.And(), node.values)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield node.operand
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield ast.Constant(not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int):
        yield ast.Constant(node.value + 1)
    elif isinstance(node, ast.Raise) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)):
        yield ast.Pass()


def mutants(tree: ast.Module) -> Iterator[tuple[ast.Module, str]]:
    """Copies of a module with one fault each inside a function, with the line and the change."""
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    inside = {id(node) for function in functions for line in function.body for node in ast.walk(line)}
    for parent in ast.walk(tree):
        for name, value in ast.iter_fields(parent):
            for at, node in enumerate(value if isinstance(value, list) else [value]):
                if id(node) not in inside or not isinstance(node, ast.AST):
                    continue
                for fault in variants(node):
                    ast.copy_location(fault, node)
                    mutated = _with(tree, parent, name, at if isinstance(value, list) else None, fault)
                    yield mutated, f"{node.lineno}: {_short(node)} -> {_short(fault)}"


def _with(tree: ast.Module, parent: ast.AST, name: str, at: int | None, fault: ast.AST) -> ast.Module:
    old = getattr(parent, name)
    if at is None:
        setattr(parent, name, fault)
    else:
        setattr(parent, name, [*old[:at], fault, *old[at + 1 :]])
    mutated = copy.deepcopy(tree)
    setattr(parent, name, old)
    return ast.fix_missing_locations(mutated)


def _short(node: ast.AST) -> str:
    text = " ".join(ast.unparse(node).split())
    return text if len(text) < 90 else text[:87] + "..."


def codes(code: CodeType, prefix: str = "") -> Iterator[tuple[str, CodeType]]:
    """Qualified names and code of the functions of a module or a class."""
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield prefix + constant.co_name, constant
            yield from codes(constant, f"{prefix}{constant.co_name}.")


def functions(owner: Any, module: ModuleType, prefix: str = "") -> Iterator[tuple[str, FunctionType]]:
    """Qualified names and function objects of a module or a class, decorated ones unwrapped."""
    for name, value in list(vars(owner).items()):
        if inspect.isclass(value) and value.__module__ == module.__name__:
            yield from functions(value, module, f"{prefix}{name}.")
        if isinstance(value, property):
            value = value.fget
        elif isinstance(value, cached_property):
            value = value.func
        value = inspect.unwrap(getattr(value, "__func__", value)) if value is not None else None
        if isinstance(value, FunctionType) and value.__module__ == module.__name__:
            yield prefix + name, value


def outcome(module: ModuleType, tree: ast.Module, tests: list[str], limit: int) -> str:
    """Run the tests in a fork whose functions of `module` are those of `tree`."""
    child = os.fork()
    if child == 0:
        os.setsid()
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, 1)
        os.dup2(nothing, 2)
        new = dict(codes(compile(tree, str(module.__file__), "exec")))
        for name, function in functions(module, module):
            if name in new and new[name].co_freevars == function.__code__.co_freevars:
                function.__code__ = new[name]
        imported = "ignore::pytest.PytestAssertRewriteWarning"  # hypothesis, above
        status = pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-W", imported, *tests])
        os._exit(int(status != 0))
    end = time.monotonic() + limit
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return SURVIVED if status == 0 else KILLED
        time.sleep(0.05)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return SLOW


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("modules", nargs="*", default=list(TESTS), help="paths as in TESTS")
    parser.add_argument("--sample", type=int, help="as many mutants of each module, chosen by the seed 0")
    parser.add_argument("--limit", type=int, default=600, help="seconds after which a mutant hangs")
    options = parser.parse_args()
    os.chdir(ROOT)
    for path in options.modules:
        module = importlib.import_module(path.removesuffix(".py").replace("/", "."))
        tests = [f"tests/{name}" for name in TESTS[path]]
        tree = ast.parse(Path(path).read_text("utf-8"))
        if outcome(module, tree, tests, options.limit) != SURVIVED:
            sys.exit(f"{path}: its tests fail without a fault")
        faults = list(mutants(tree))
        if options.sample and options.sample < len(faults):
            faults = random.Random(0).sample(faults, options.sample)
        counts = dict.fromkeys((KILLED, SURVIVED, SLOW), 0)
        for mutated, change in faults:
            result = outcome(module, mutated, tests, options.limit)
            counts[result] += 1
            if result != KILLED:
                print(f"{path}:{change}  [{result}]", flush=True)
        print(f"{path}: {counts}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
