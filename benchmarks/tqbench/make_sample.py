"""Make the two embedded sets from their origins (data/README.md): `python -m tqbench.make_sample`."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from .sources.embedded import pack_int8, unpack_int8
from .sources.hidden_states import cut_passages, embed_passages
from .sources.options import SourceOptions

__all__ = ["main"]

_LAYER, _MAX_LENGTH, _PASSAGE_CHARACTERS = -1, 128, 400


def make_embeddings(base: str, queries: str, rows: int, nq: int, seed: int) -> dict[str, np.ndarray]:
    """`rows` base rows, as many held-out rows and `nq` queries, drawn at random; no passage twice."""
    origin, asked = np.load(base, mmap_mode="r"), np.load(queries, mmap_mode="r")
    rng = np.random.default_rng(seed)
    drawn = rng.choice(len(origin), 2 * rows + rows // 4, replace=False)
    chosen = drawn[_distinct(np.asarray(origin[drawn], np.float32))][: 2 * rows]
    return {
        "base": np.asarray(origin[np.sort(chosen[:rows])], np.float32),
        "held_out": np.asarray(origin[np.sort(chosen[rows:])], np.float32),
        "queries": np.asarray(asked[np.sort(rng.choice(len(asked), nq, replace=False))], np.float32),
    }


def _distinct(x: np.ndarray) -> np.ndarray:
    """Positions of the unit rows that no earlier row equals (cosine above 0.999)."""
    keep = np.ones(len(x), dtype=bool)
    for start in range(0, len(x), 2048):
        block = x[start : start + 2048]
        same = block @ x[: start + len(block)].T > 0.999
        earlier = np.arange(same.shape[1]) < np.arange(start, start + len(block))[:, None]
        keep[start : start + len(block)] = ~(same & earlier).any(axis=1)
    return np.flatnonzero(keep)


def make_hidden_states(
    model: str, text: str, rows: int, held_out: int, nq: int, seed: int, layer: int
) -> dict[str, np.ndarray]:
    """Mean-pooled hidden states of passages of `text`, unit length."""
    import torch
    from transformers import AutoTokenizer

    torch.manual_seed(seed)
    passages = list(cut_passages(Path(text).read_text(encoding="utf-8"), _PASSAGE_CHARACTERS))
    total = rows + held_out + nq
    if len(passages) < total:
        raise SystemExit(f"{text} has {len(passages)} passages, {total} are needed")
    order = np.random.default_rng(seed).permutation(len(passages))[:total]
    options = SourceOptions(pooling="mean", layer=layer, max_length=_MAX_LENGTH, batch_size=32)
    chosen = [passages[i] for i in order]
    states = embed_passages(_load_int8_model(model), AutoTokenizer.from_pretrained(model), chosen, options)
    states /= np.linalg.norm(states, axis=1, keepdims=True)
    base, train, queries = np.split(states, [rows, rows + held_out])
    return {"base": base, "held_out": train, "queries": queries}


def _load_int8_model(folder: str):
    """The model of a folder whose matrices are stored as int8 rows with a scale each."""
    from safetensors.torch import load_file
    from transformers import AutoConfig, AutoModel

    (file,) = sorted(Path(folder).glob("*.safetensors"))
    stored = load_file(file)
    weights = {}
    for name, value in stored.items():
        if name.endswith(".scale"):
            continue
        scale = stored.get(f"{name}.scale")
        full = value.float() if scale is None else value.float() * scale.float()[:, None]
        weights[name.removeprefix("model.")] = full
    weights.pop("lm_head.weight", None)
    model = AutoModel.from_config(AutoConfig.from_pretrained(folder)).float()
    model.load_state_dict(weights)
    return model.eval()


def store(path: Path, parts: dict[str, np.ndarray]) -> None:
    """Write the parts as int8 rows and report size and squared mean."""
    packed = {f"{part}_{key}": value for part, x in parts.items() for key, value in pack_int8(x).items()}
    np.savez(path, allow_pickle=False, **packed)
    base = unpack_int8(packed["base_q"], packed["base_step"]).astype(np.float64)
    mean = base.mean(axis=0)
    size = path.stat().st_size / 1e6
    shapes = ", ".join(f"{part} {x.shape[0]}" for part, x in parts.items())
    print(f"{path.name}: {shapes}, d = {base.shape[1]}, {size:.2f} MB, squared mean {mean @ mean:.3f}")


def main(argv: list[str] | None = None) -> None:
    """Parse the arguments and write both files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", required=True, help="npy file of embeddings [n, 384]")
    parser.add_argument("--queries", required=True, help="npy file of query embeddings")
    parser.add_argument("--model", required=True, help="folder of a causal LM with int8 weights")
    parser.add_argument("--text", required=True, help="text file")
    parser.add_argument("--layer", type=int, default=_LAYER, help="hidden state to pool (%(default)s)")
    parser.add_argument("--out", default=str(Path(__file__).parent / "data"), help="folder of the results")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    out, seed = Path(arguments.out), arguments.seed
    out.mkdir(parents=True, exist_ok=True)
    store(out / "sample.npz", make_embeddings(arguments.base, arguments.queries, 8000, 500, seed))
    states = make_hidden_states(arguments.model, arguments.text, 2000, 1600, 300, seed, arguments.layer)
    store(out / "sample-lm.npz", states)


if __name__ == "__main__":
    main()
