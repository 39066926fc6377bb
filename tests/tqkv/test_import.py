"""What importing tqkv needs and does."""

from __future__ import annotations

import subprocess
import sys

import pytest


def python(code: str) -> str:
    # Not from the checkout: what is installed is tested.
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=sys.prefix
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_is_light():
    assert (
        python("import sys, tqkv; print('torch' in sys.modules, 'transformers' in sys.modules)")
        == "False False"
    )


def test_registering():
    code = (
        "import tqkv; tqkv.register();"
        "from transformers.modeling_utils import AttentionInterface as A;"
        "from transformers.masking_utils import AttentionMaskInterface as M;"
        "print('turboquant' in A(), 'turboquant' in M())"
    )
    assert python(code) == "True True"


@pytest.mark.parametrize("missing", ["torch", "transformers", "safetensors"])
def test_missing_packages_are_named(missing):
    code = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        "try:\n    from tqkv import TurboQuantCache\n"
        "except ImportError as error:\n    print(error)"
    )
    assert f"tqkv needs {missing}: pip install 'tqann[kv]'" in python(code)


def test_unknown_names():
    import tqkv

    with pytest.raises(AttributeError, match="module 'tqkv' has no attribute 'Cache'"):
        _ = tqkv.Cache
