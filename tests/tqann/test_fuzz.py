"""The corpus of tests/fuzz, read once: an index or an IndexFileError, whatever the bytes are."""

import random
from collections import Counter
from pathlib import Path

import pytest

from fuzz.reader import odd_frame, odd_header, one_input, seeds, signed, variant
from tqann.io import from_bytes, to_bytes

CORPUS = sorted((Path(__file__).parent.parent / "fuzz" / "corpus").iterdir())


def test_the_corpus(tmp_path):
    reached = Counter()
    for entry in CORPUS:
        data = entry.read_bytes()
        reached[one_input(data, tmp_path / "mapped")] += 1
        reached[one_input(variant(data), tmp_path / "mapped")] += 1
    assert min(reached[how] for how in ("refused", "mapped", "read")) >= 3


def test_the_seeds_are_in_the_corpus():
    """Journals have a random salt, so what they hold is compared."""
    committed = {entry.stem: entry.read_bytes() for entry in CORPUS}
    for name, data in seeds().items():
        if name.endswith("journal"):
            assert to_bytes(from_bytes(committed[name])) == to_bytes(from_bytes(data))
        else:
            assert committed[name] == data


@pytest.mark.parametrize("name", ["l2", "plan-journal", "refined-journal", "cosine-journal"])
def test_mutants_pass_the_checksums(name, tmp_path):
    """Without that the fuzzer would see nothing behind them."""
    rng, data = random.Random(3), seeds()[name]
    assert to_bytes(from_bytes(signed(data, rng))) == to_bytes(from_bytes(data))
    refusals = Counter()
    for _ in range(150):
        mutant = bytearray(data)
        mutant[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        for odd in (bytes(mutant), odd_header(data, rng), odd_frame(data, rng)):
            refusals[one_input(signed(odd, rng), tmp_path / "mapped")] += 1
    assert refusals["read"] > 70
    assert refusals["refused"] > 70
