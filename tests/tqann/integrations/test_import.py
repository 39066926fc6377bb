"""An integration without its package says what to install; none is imported by `import tqann`."""

import subprocess
import sys

import pytest

PACKAGES = {"sklearn": "sklearn", "langchain": "langchain_core", "llama_index": "llama_index"}
EXTRAS = {"sklearn": "sklearn", "langchain": "langchain", "llama_index": "llama-index"}


@pytest.mark.parametrize("module", PACKAGES)
def test_missing_package_is_named(module, tmp_path):
    source = f"import sys; sys.modules[{PACKAGES[module]!r}] = None; import tqann.integrations.{module}"
    done = subprocess.run(
        [sys.executable, "-c", source], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert f"ImportError: tqann.integrations.{module} needs" in done.stderr
    assert f"pip install 'tqann[{EXTRAS[module]}]'" in done.stderr


def test_import_tqann_imports_no_integration(tmp_path):
    source = "import sys, tqann; print([m for m in sys.modules if m.startswith('tqann.integrations')])"
    done = subprocess.run(
        [sys.executable, "-c", source], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.stdout == "[]\n", done.stderr
