"""`_core.pyi` says what the compiled module is: compared with the stub that nanobind makes of it."""

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

import tqcore


class Plain(ast.NodeTransformer):
    """Annotations without shapes, and NumPy under one name."""

    def visit_Subscript(self, node):
        self.generic_visit(node)
        if isinstance(node.value, ast.Name) and node.value.id == "Annotated":
            return node.slice.elts[0]
        return node

    def visit_Name(self, node):
        return ast.Name("np") if node.id == "numpy" else node


def text(annotation):
    return "None" if annotation is None else ast.unparse(Plain().visit(annotation))


def described(source):
    """{name: what it is}: ("function", parameters, result), or ("attribute", type, whether it can be set)."""
    found = {}

    def visit(body, prefix):
        for node in body:
            if isinstance(node, ast.ClassDef):
                found[prefix + node.name] = "class"
                visit(node.body, f"{prefix}{node.name}.")
            elif isinstance(node, ast.AnnAssign):
                found[prefix + node.target.id] = ("attribute", text(node.annotation), True)
            elif isinstance(node, ast.FunctionDef):
                name, marks = prefix + node.name, [ast.unparse(mark) for mark in node.decorator_list]
                if marks == ["property"]:
                    found[name] = ("attribute", text(node.returns), False)
                elif marks:
                    found[name] = (*found[name][:2], True)
                elif node.name != "__init__":
                    found[name] = ("function", parameters(node), text(node.returns))

    visit(ast.parse(source).body, "")
    return found


def parameters(node):
    named = [argument for argument in node.args.args if argument.arg != "self"]
    defaults = [None] * (len(named) - len(node.args.defaults)) + [ast.unparse(d) for d in node.args.defaults]
    return [(a.arg, text(a.annotation), d) for a, d in zip(named, defaults, strict=True)]


@pytest.fixture(scope="module")
def stubs(tmp_path_factory):
    """What the committed stub says, and what the module is."""
    if importlib.util.find_spec("nanobind") is None:
        pytest.skip("nanobind is not installed")
    made = tmp_path_factory.mktemp("stub") / "core.pyi"
    command = [sys.executable, "-m", "nanobind.stubgen", "-q", "-m", "tqcore._core", "-o", made]
    done = subprocess.run(command, cwd=made.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    committed = Path(tqcore.__file__).with_name("_core.pyi")
    return described(committed.read_text("utf-8")), described(made.read_text("utf-8"))


def test_names_are_the_same(stubs):
    committed, made = stubs
    assert set(committed) == set(made)
    assert len(made) > 40


def test_signatures_are_the_same(stubs):
    committed, made = stubs
    for name, what in made.items():
        said = committed[name]
        if what[0] != "function":
            assert said == what, name
            continue
        # nanobind knows the parameters of methods bound without names by position only.
        positional = [p if p[0] != "arg" else (q[0], *p[1:]) for p, q in zip(what[1], said[1], strict=True)]
        assert said[1] == positional, name
        assert said[2] == what[2] or (what[2] == "tuple" and said[2].startswith("tuple[")), name
