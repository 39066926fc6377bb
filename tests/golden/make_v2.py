"""Writes the index files of format version 2, with a journal of version 1, and what reading them must give.

The committed files stay as they are while these versions are read; a new version gets files and a script of its
own. Run it as `python tests/golden/make_v2.py`.
"""

import shutil
import tempfile
from pathlib import Path

import numpy as np

from tqann import TurboQuantIndex

FOLDER = Path(__file__).parent
D = 20


def changed(path, x, **options):
    """An index that was synced with `path` after each kind of change."""
    index = TurboQuantIndex(D, **options)
    index.add(x[:20])
    index.sync(path)
    index.add(x[20:])
    index.sync(path)
    index.remove_ids([2, 3, 11, 34])
    index.sync(path)
    index.add_with_ids(x[:4], [10**12, 77, 50, 60])
    index.remove_ids([77])
    if index.refine_bits:
        index.refine_factor = 4
    index.sync(path)
    return index


def indexes(folder):
    """(name, index) of each file written to `folder`."""
    x = np.random.default_rng(1).standard_normal((35, D)).astype(np.float32)
    index = TurboQuantIndex(D, 2.5, "ip", seed=3)
    index.add(x)
    index.sync(folder / "v2_ip_empty_journal.tqann")
    yield "ip_empty_journal", index
    for name, options in {
        "l2_chain": {"bits": 2.5, "metric": "l2", "seed": 3},
        "cosine_prod": {"bits": 2, "metric": "cosine", "code": "prod", "sketch": "gaussian"},
        "ip_plan": {"bits": 2, "metric": "ip", "seed": 5, "plan": "calibrated"},
        "l2_refined": {"bits": 1, "metric": "l2", "refine_bits": 4, "plan": "calibrated"},
    }.items():
        yield name, changed(folder / f"v2_{name}.tqann", x * np.arange(D, 0, -1, dtype=np.float32), **options)


if __name__ == "__main__":
    queries = np.random.default_rng(2).standard_normal((4, D)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        for name, index in indexes(Path(folder)):
            shutil.copy(Path(folder) / f"v2_{name}.tqann", FOLDER)
            distances, labels = index.search(queries, 5)
            np.savez(
                FOLDER / f"v2_{name}.npz",
                queries=queries,
                ids=index.ids,
                decoded=index.reconstruct_batch(index.ids),
                D=distances,
                I=labels,
                repr=repr(index),
            )
