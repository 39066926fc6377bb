"""Search with an installed wheel and NumPy alone: `python tests/wheel_smoke.py`."""

import numpy as np

import tqann
import tqcore

x = np.random.default_rng(0).standard_normal((1000, 100), dtype=np.float32)
index = tqann.TurboQuantIndex(100, bits=4)
index.add(x)
distances, labels = index.search(x[:50], 1)
if distances.shape != (50, 1) or not (labels[:, 0] == np.arange(50)).all():
    raise SystemExit(f"wrong neighbours: {labels[:, 0]}")
print(f"{index!r}, SIMD level {tqcore.simd_level()}")
