"""The probe's tokenizer, text cut into articles, and articles into tokens.

As a program it trains the tokenizer: ``python benchmarks/probe/tokenizer.py --text wiki_train.txt.xz --out FOLDER``.
"""

from __future__ import annotations

import argparse
import json
import lzma
import multiprocessing
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

__all__ = ["PATTERN", "articles", "common_words", "encode", "read_text", "save_tokenizer", "train_tokenizer"]

PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How text is cut before byte pairs are merged: as Qwen's tokenizers do, every digit apart."""
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>")


def read_text(path: Path) -> str:
    """The text of a file, UTF-8, plain or compressed with xz."""
    if path.suffix == ".xz":
        return lzma.decompress(path.read_bytes()).decode("utf-8")
    return path.read_text(encoding="utf-8")


def articles(text: str) -> list[str]:
    """Articles of a text in which titles are short lines between blank lines."""
    found: list[list[str]] = []
    for part in text.split("\n\n"):
        part = part.strip("\n")
        if not part:
            continue
        title = len(part) < 100 and "\n" not in part
        if not found or (title and len(found[-1]) > 1):
            found.append([])
        found[-1].append(part)
    return ["\n\n".join(parts) for parts in found]


def common_words(text: str, count: int = 8500, skipped: int = 500) -> list[str]:
    """Lower-case words of 4 to 10 letters by frequency, in alphabetical order, the `skipped` most frequent left out."""
    counts = Counter(re.findall(r"(?<= )[a-z]{4,10}(?= )", text[:40_000_000]))
    return sorted(word for word, _ in counts.most_common(count + skipped)[skipped:])


def train_tokenizer(chunks: Iterable[str], size: int = 4096) -> Tokenizer:
    """Byte-level byte-pair encoding of `size` entries, special tokens included."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(PATTERN), behavior="isolated", invert=False),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])  # fmt: skip
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        chunks,
        trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=list(SPECIAL),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path, length: int = 32768) -> None:
    """Write tokenizer.json and tokenizer_config.json as transformers reads them."""
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": SPECIAL[0],
        "pad_token": SPECIAL[3],
        "additional_special_tokens": list(SPECIAL[1:3]),
        "model_max_length": length,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


_worker: list[Tokenizer] = []


def _start(path: str) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _worker.append(Tokenizer.from_file(path))


def _encode_some(texts: Sequence[str]) -> np.ndarray:
    ids = [np.array([0, *_worker[0].encode(text).ids], dtype=np.uint16) for text in texts]
    return np.concatenate(ids)


def encode(texts: Sequence[str], tokenizer: Path, processes: int = 1) -> np.ndarray:
    """Tokens of articles, uint16 [n], the end-of-text token (0) before each article."""
    parts = [texts[start : start + 200] for start in range(0, len(texts), 200)]
    if processes == 1:
        _worker.clear()
        _start(str(tokenizer))
        return np.concatenate([_encode_some(part) for part in parts])
    with multiprocessing.get_context("fork").Pool(processes, _start, (str(tokenizer),)) as pool:
        return np.concatenate(pool.map(_encode_some, parts, chunksize=1))


def main() -> None:
    """Train the tokenizer on a hundred pieces spread over a text."""
    parser = argparse.ArgumentParser(description="Train the probe's tokenizer.")
    parser.add_argument("--text", type=Path, required=True, help="text, UTF-8, plain or .xz")
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--out", type=Path, required=True, help="folder")
    options = parser.parse_args()
    text = read_text(options.text)
    starts = range(0, len(text), max(1, len(text) // 100))
    save_tokenizer(train_tokenizer((text[s : s + 200_000] for s in starts), options.size), options.out)


if __name__ == "__main__":
    main()
