"""What SECURITY.md says of the sources and of reading files, checked."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = ("tqann", "tqcore", "tqkv")
SOURCES = [
    path for folder in (*LIBRARY, "benchmarks", "cli") for path in sorted((ROOT / folder).rglob("*.py"))
]
UNSAFE = {"pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
NETWORK = {"socket", "ssl", "http", "urllib", "ftplib", "requests", "httpx", "aiohttp", "huggingface_hub"}
# Raises at whatever a file must not bring about while it is read.
WATCH = """
import sys
FORBIDDEN = {"pickle.find_class", "socket.connect", "socket.getaddrinfo", "subprocess.Popen", "os.system", "os.exec"}
def watch(event, arguments):
    if event in FORBIDDEN:
        print("forbidden:", event, arguments, file=sys.stderr)
        sys.stderr.flush()
        import os
        os._exit(3)
sys.addaudithook(watch)
"""


def calls(path):
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {keyword.arg: keyword.value for keyword in node.keywords}, node


def imports(path):
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


def named(path):
    return path.relative_to(ROOT).as_posix()


pytestmark = pytest.mark.skipif(
    not (ROOT / "tqann").is_dir(), reason="not a checkout: the sources are not here"
)


def test_there_are_sources():
    assert len(SOURCES) > 100


@pytest.mark.parametrize("path", SOURCES, ids=named)
def test_sources_load_no_code(path):
    assert not set(imports(path)) & UNSAFE
    for function, keywords, node in calls(path):
        name = function.rpartition(".")[2]
        assert function not in ("eval", "exec", "os.system", "torch.load"), ast.unparse(node)
        assert "trust_remote_code" not in keywords, ast.unparse(node)
        for key in ("allow_pickle", "shell"):
            value = keywords.get(key)
            assert value is None or (isinstance(value, ast.Constant) and value.value is False), ast.unparse(
                node
            )
        if name == "from_pretrained" and "Model" in function:
            assert ast.unparse(keywords.get("use_safetensors", ast.Constant(None))) == "True", ast.unparse(
                node
            )


@pytest.mark.parametrize(
    "path", [path for path in SOURCES if path.relative_to(ROOT).parts[0] in LIBRARY], ids=named
)
def test_libraries_open_no_connection(path):
    assert not set(imports(path)) & NETWORK


def test_reading_files_runs_nothing(tmp_path):
    source = f"""{WATCH}
from pathlib import Path
import numpy as np
from tqann import read_index
files = sorted(Path({str(ROOT / "tests" / "golden")!r}).glob("*.tqann"))
assert files
for path in files:
    for mmap in (False, True):
        index = read_index(path, mmap=mmap)
        index.search(np.ones((1, index.d), dtype="f4"), 3)
"""
    done = subprocess.run(
        [sys.executable, "-c", source], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_watch_sees_a_pickle(tmp_path):
    source = WATCH + "import pickle, pathlib; pickle.loads(pickle.dumps(pathlib.PurePosixPath('a')))"
    done = subprocess.run(
        [sys.executable, "-c", source], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 3
    assert "pickle.find_class" in done.stderr
