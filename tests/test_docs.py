"""Documentation: every example runs, doctests hold, and the pages build without a warning."""

import doctest
import importlib
import importlib.util
import pkgutil
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
TORCH_PAGES = {"guides/kv-cache.md"}


def examples(page):
    return re.findall(r"^```python\n(.*?)^```$", (DOCS / page).read_text("utf-8"), re.DOTALL | re.MULTILINE)


def run_python(source, cwd, *options):
    done = subprocess.run(
        [sys.executable, *options, "-c", source], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def tiny_qwen(folder):
    """A model with random weights where the guide's name finds it, with the tokenizer of the small test model."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(ROOT / "benchmarks" / "probe" / "model")
    config = transformers.Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    transformers.Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def test_there_are_examples():
    assert sum(bool(examples(page)) for page in PAGES) >= 5


@pytest.mark.parametrize("page", [page for page in PAGES if examples(page)])
def test_examples_run(page, tmp_path):
    if page in TORCH_PAGES:
        tiny_qwen(tmp_path / "Qwen" / "Qwen3-0.6B")
    # torch and transformers warn of their own affairs
    warnings = [] if page in TORCH_PAGES else ["-W", "error"]
    run_python("".join(examples(page)), tmp_path, *warnings)


def test_readme_example_of_the_cache_runs(tmp_path):
    tiny_qwen(tmp_path / "model")
    given = """
from transformers import AutoModelForCausalLM, AutoTokenizer
inputs = AutoTokenizer.from_pretrained("model")("The capital of France is", return_tensors="pt")
model = AutoModelForCausalLM.from_pretrained("model")
"""
    sources = [source for source in examples("../README.md") if "tqkv" in source]
    assert len(sources) == 1
    run_python(given + sources[0] + "assert cache.get_seq_length() > 5", tmp_path)


def modules_with_doctests():
    for package in ("tqann", "tqcore", "tqkv"):
        spec = importlib.util.find_spec(package)
        for info in pkgutil.walk_packages(spec.submodule_search_locations, package + "."):
            origin = info.module_finder.find_spec(info.name).origin or ""
            lines = Path(origin).read_text("utf-8").splitlines() if origin.endswith(".py") else []
            if any(">>> " in line and "doctest: +SKIP" not in line for line in lines):
                yield info.name


@pytest.mark.parametrize("name", sorted(modules_with_doctests()))
def test_doctests(name):
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        pytest.skip(str(error))
    results = doctest.testmod(module)
    assert results.attempted
    assert not results.failed


def test_pages_build_without_warnings(tmp_path):
    for package in ("sphinx", "myst_parser", "numpydoc", "furo"):
        pytest.importorskip(package, reason="needs the extra docs")
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", DOCS, tmp_path / "html"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    reference = (tmp_path / "html" / "reference" / "tqann.html").read_text("utf-8")
    for name in ("range_search", "add_with_ids", "sync", "IndexFileError"):
        assert name in reference
    shutil.rmtree(tmp_path / "html")
