"""The installed package as a whole: what importing it pulls in, and the README's example."""

import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def run_python(source, cwd):
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", source], cwd=cwd, capture_output=True, text=True, check=False
    )


def test_import_needs_numpy_alone(tmp_path):
    source = (
        "import sys, numpy; before = {m.partition('.')[0] for m in sys.modules}; import tqann, tqcore;"
        "after = {m.partition('.')[0] for m in sys.modules} - before - set(sys.stdlib_module_names);"
        "print(*sorted(after))"
    )
    done = run_python(source, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["tqann", "tqcore"]


def test_packages_are_typed():
    import tqann
    import tqcore
    import tqkv

    for package in (tqann, tqcore, tqkv):
        assert (Path(package.__file__).parent / "py.typed").is_file()


def test_readme_examples_run(tmp_path):
    sources = re.findall(
        r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text("utf-8"), re.DOTALL | re.MULTILINE
    )
    sources = [source for source in sources if "tqkv" not in source]  # test_docs.py runs that one
    assert sources
    done = run_python("".join(sources), tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "wiki.tqann").is_file()


def test_extras_that_are_named_exist():
    pattern = re.compile(r"(?:tqann|\.)\[([a-z,-]+)\]")
    files = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    for folder in ("tqann", "tqkv", "tqcore", "cli", "benchmarks"):
        files += (ROOT / folder).rglob("*.py")
    found = [extras for file in files for extras in pattern.findall(file.read_text("utf-8"))]
    named = set(",".join(found).split(","))
    assert named >= {"bench", "kv", "gpu", "langchain"}
    assert named <= set(metadata.metadata("tqann").get_all("Provides-Extra"))
