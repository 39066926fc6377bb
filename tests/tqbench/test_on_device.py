"""`tq bench ann --device cuda`: what it says without a GPU, its table and picture, and a small run on a GPU."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from rich.console import Console

from tqbench.device_picture import write_device_picture
from tqbench.errors import BenchError, Unavailable
from tqbench.on_device import DEVICE_METHODS, compare, print_device_record, run_device_ann
from tqbench.sources import SourceOptions
from tqcli.commands import cli as main

torch = pytest.importorskip("torch")


def _row(label: str, bits: float, probes: int | None, recall: float) -> dict[str, Any]:
    return {
        "method": label,
        "label": label,
        "bits": bits,
        "status": "ok",
        "probes": probes,
        "bytes_per_vector": 100.0,
        "train_seconds": 0.5,
        "add_seconds": 0.25,
        "recall_10_at_10": recall,
        "milliseconds": {"1": 0.25, "100": 0.75},
    }


def _record() -> dict[str, Any]:
    rows = [_row("tqann chain", 2.0, None, 0.8), _row("tqann chain", 4.0, None, 0.9)]
    rows += [_row("faiss-gpu IVF-PQ", 1.0, p, 0.1 * p) for p in (1, 4)]
    skipped = {
        "method": "ivf-sq",
        "label": "faiss-gpu IVF-SQ",
        "bits": 2.0,
        "status": "skipped",
        "reason": "no kernel",
    }
    return {
        "dataset": {"name": "set", "n": 1000, "d": 32, "metric": "ip"},
        "settings": {"k": 10},
        "device": {"name": "a GPU"},
        "results": [*rows, skipped],
    }


def test_table_and_picture(tmp_path: Path) -> None:
    out = io.StringIO()
    print_device_record(_record(), Console(file=out, width=150))
    text = out.getvalue()
    assert "0.250" in text
    assert "IVF-SQ at 2 bits: no kernel" in text
    assert text.count("IVF-PQ") == 2
    path = write_device_picture(_record(), tmp_path, "x")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_unknown_methods_are_named() -> None:
    with pytest.raises(BenchError, match="opq"):
        run_device_ann("sample", SourceOptions(), methods=("opq",))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("command", ["ann", "speed"])
def test_without_a_gpu_one_line_says_what_is_missing(command: str) -> None:
    result = CliRunner().invoke(main, ["bench", command, "--device", "cuda"])
    assert result.exit_code == 2
    assert "needs a CUDA device" in result.output
    assert result.output.count("\n") == 1


def test_product_refuses_distances() -> None:
    from tqbench.adapters.device import DeviceProduct

    with pytest.raises(Unavailable):
        DeviceProduct(8, 16, "l2", 10)


@pytest.mark.gpu
def test_compare_on_a_gpu() -> None:
    rng = np.random.default_rng(0)
    base = torch.from_numpy(rng.standard_normal((4000, 64), dtype=np.float32)).cuda()
    rows = compare(base, base[:20], "ip", methods=tuple(DEVICE_METHODS), bits=(2, 4), k=10, repeats=1)
    done = {(row["method"], row["bits"]): row for row in rows if row["status"] == "ok"}
    assert done["torch", 16]["recall_10_at_10"] > 0.95
    assert done["chain", 4]["recall_10_at_10"] > done["chain", 2]["recall_10_at_10"] > 0.5
    assert all(row["reason"] for row in rows if row["status"] == "skipped")
