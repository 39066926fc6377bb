"""Writes the index files of format version 1 and what reading them must give.

The committed files stay as they are while version 1 is read; a new version gets files and a script of its
own. Run it as `python tests/golden/make_v1.py`.
"""

from pathlib import Path

import numpy as np

from tqann import TurboQuantIndex

FOLDER = Path(__file__).parent
D = 20


def indexes():
    """(name, index) of each file: every metric, every code, ids that are positions and ids that are not."""
    x = np.random.default_rng(1).standard_normal((35, D)).astype(np.float32)
    index = TurboQuantIndex(D, 2.5, "l2", seed=3)
    index.add(x)
    yield "l2_chain", index
    index = TurboQuantIndex(D, 3, "ip", code="mse", scale="norm")
    index.add_with_ids(x, np.arange(35) * 10**12 + 7)
    index.remove_ids([7])
    yield "ip_mse_ids", index
    index = TurboQuantIndex(D, 2, "cosine", code="prod", sketch="gaussian")
    index.add(x)
    index.remove_ids([3, 34])
    yield "cosine_prod", index
    index = TurboQuantIndex(D, 3.5, "l2", memory=3, rotation="haar", seed=11)
    index.add(x)
    yield "l2_chain_m3_haar", index
    index = TurboQuantIndex(D, 2, "ip", seed=5)
    index.calibrate(x * np.arange(D, 0, -1, dtype=np.float32))
    index.add(x * np.arange(D, 0, -1, dtype=np.float32))
    yield "ip_plan", index
    index = TurboQuantIndex(D, 1, "l2", seed=5, refine_bits=4)
    index.refine_factor = 3
    index.calibrate(x * np.arange(D, 0, -1, dtype=np.float32))
    index.add_with_ids(x * np.arange(D, 0, -1, dtype=np.float32), np.arange(35) * 5)
    yield "l2_refined", index


if __name__ == "__main__":
    queries = np.random.default_rng(2).standard_normal((4, D)).astype(np.float32)
    for name, index in indexes():
        index.save(FOLDER / f"v1_{name}.tqann")
        distances, labels = index.search(queries, 5)
        np.savez(
            FOLDER / f"v1_{name}.npz",
            queries=queries,
            ids=index.ids,
            decoded=index.reconstruct_batch(index.ids),
            D=distances,
            I=labels,
            repr=repr(index),
        )
