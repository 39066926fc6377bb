"""Use an installed wheel with NumPy alone: `python tests/wheel_smoke.py`."""

import tempfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np

import tqann
import tqcore
import tqkv


def check(holds, what):
    if not holds:
        raise SystemExit(f"failed: {what}")


x = np.random.default_rng(0).standard_normal((1000, 100), dtype=np.float32)
for options in (
    {"bits": 4},
    {"bits": 3, "metric": "ip", "plan": "calibrated"},
    {"bits": 1, "refine_bits": 8},
):
    index = tqann.TurboQuantIndex(100, **options)
    index.add(x)
    queries = x[:50] * (4 if index.metric == "ip" else 1)
    distances, labels = index.search(queries, 1)
    check(distances.shape == (50, 1) and (labels[:, 0] == np.arange(50)).all(), f"neighbours of {index}")
    with tempfile.TemporaryDirectory() as folder:
        index.save(Path(folder) / "a.tqann")
        read = tqann.read_index(Path(folder) / "a.tqann")
        check((read.search(queries, 5)[0] == index.search(queries, 5)[0]).all(), f"the saved {index}")

for package in (tqann, tqcore, tqkv):
    check((Path(package.__file__).parent / "py.typed").is_file(), f"py.typed of {package.__name__}")
check(Path(tqcore.__file__).with_name("_core.pyi").is_file(), "the stub of the compiled module")

if find_spec("torch") is None:
    try:
        tqkv.TurboQuantCache  # noqa: B018 - the attribute imports
    except ImportError as error:
        check("tqann[kv]" in str(error), f"an error that names the extra, got {error}")
    else:
        check(False, "an error without torch")
print(f"{index!r}, SIMD level {tqcore.simd_level()}, {tqann.__version__}")
