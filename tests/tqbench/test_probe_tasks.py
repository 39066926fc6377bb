"""The probe's tasks and tokens: what is asked for stands in the text, and is there to be found."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

tokenizers = pytest.importorskip("tokenizers")

ROOT = Path(__file__).resolve().parents[2]
PROBE = ROOT / "benchmarks" / "probe"
sys.path.insert(0, str(PROBE))

import tasks  # noqa: E402
import tokenizer as tokenizing  # noqa: E402
import wording  # noqa: E402

MODEL = PROBE / "model"
WORDS = [
    "amber",
    "bridge",
    "castle",
    "dragon",
    "ember",
    "falcon",
    "garden",
    "harbour",
    "island",
    "jungle",
    "kettle",
]


@pytest.fixture(scope="module")
def encoder():
    return wording.Encoder(tokenizers.Tokenizer.from_file(str(MODEL / "tokenizer.json")))


@pytest.fixture(scope="module")
def text():
    return tokenizing.encode([(ROOT / "LICENSE").read_text(encoding="utf-8")], MODEL / "tokenizer.json")


@pytest.fixture
def writer(encoder, text):
    return tasks.TaskWriter(encoder, WORDS, text, 7)


# Words and tokens


def test_encoder_is_the_tokenizer_on_generated_text(encoder, writer):
    words, choice = writer.words, writer.choice
    for needle in (*wording.NEEDLES, wording.PASS_KEY, wording.SEVERAL, wording.CHAIN):
        for kind in ("word", "pair", "spaced", "name", "digits", "hex", "uuid"):
            fields = {
                "key": words.key(kind, WORDS),
                "value": words.value(choice.choice(("six", "digits", "hex", "word", "uuid"))),
                "noun": "number",
            }
            for form in (needle.statement, needle.question, needle.opening):
                said = "\nQuestion: " + form.format(**fields) + ".\n"
                assert encoder(said) == encoder.tokenizer.encode(said).ids
    assert encoder(wording.NOISE) == encoder.tokenizer.encode(wording.NOISE).ids


def test_articles_start_at_titles():
    assert tokenizing.articles("A\n\nabout a.\nMore.\n\nB\n\nabout b.\n\n") == [
        "A\n\nabout a.\nMore.",
        "B\n\nabout b.",
    ]


def test_encode_puts_the_end_of_text_before_each_article(encoder):
    ids = tokenizing.encode(["one", "two"], MODEL / "tokenizer.json")
    assert ids.dtype == np.uint16
    assert ids.tolist() == [0, *encoder.tokenizer.encode("one").ids, 0, *encoder.tokenizer.encode("two").ids]


def test_tokenizer_is_trained_as_the_committed_one_was(tmp_path, encoder):
    small = tokenizing.train_tokenizer(["low lower lowest 12 newer newest wider " * 40], 300)
    tokenizing.save_tokenizer(small, tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert settings == json.loads((MODEL / "tokenizer_config.json").read_text())
    assert [small.id_to_token(i) for i in range(4)] == list(tokenizing.SPECIAL)
    assert [encoder.tokenizer.id_to_token(i) for i in range(4)] == list(tokenizing.SPECIAL)
    assert small.decode(small.encode("lowest 12, é!").ids) == "lowest 12, é!"
    assert [len(small.encode(digits).ids) for digits in ("1", "12", "1212")] == [1, 2, 4]


def test_listed():
    assert [wording.listed(WORDS[:n]) for n in (1, 2, 3)] == [
        "amber", "amber and bridge", "amber, bridge, and castle",
    ]  # fmt: skip


# Tasks


@pytest.mark.parametrize("task", tasks.TASKS)
@pytest.mark.parametrize("length", [700, 1500])
def test_sample_hides_its_answer_and_asks_for_it(writer, task, length):
    decode = writer.encode.tokenizer.decode
    for depth in (0.1, 0.5, 0.9):
        sample = writer.sample(task, length, depth)
        assert sample.tokens.shape == (length,)
        assert sample.stop == length - 1
        assert decode(sample.tokens[sample.stop :].tolist()) == "."
        before = decode(sample.tokens[: sample.start].tolist())
        said = decode(sample.tokens[sample.start : sample.stop].tolist()).strip()
        context = before[: before.rindex("\nQuestion" if task == "tracking" else "\nWhat")]
        values = (
            said.replace("and ", "").split() if task == "tracking" else said.replace("and ", "").split(", ")
        )
        assert len(values) == {"multi-value": 4, "tracking": 5}.get(task, 1)
        places = [context.index(value) for value in values]
        assert places == sorted(places)
        if len(values) == 1:
            answer = sample.tokens[sample.start : sample.stop].tolist()
            body = sample.tokens[: sample.start - 20].tolist()
            (found,) = [i for i in range(len(body)) if body[i : i + len(answer)] == answer]
            others = length * (0.6 if task in ("multi-key", "uuid") else 0.15)
            assert depth * (length - others) <= found <= depth * length + 400 + 70


def test_sample_depends_on_the_seed_alone(writer):
    writer.reseed(3)
    first = writer.sample("multi-key", 800, 0.5).tokens
    second = writer.sample("multi-key", 800, 0.5).tokens
    writer.reseed(3)
    assert np.array_equal(writer.sample("multi-key", 800, 0.5).tokens, first)
    assert not np.array_equal(first, second)


def test_sample_says_what_is_wrong(writer):
    with pytest.raises(ValueError, match=r"task must be one of single, .*got 'haystack'"):
        writer.sample("haystack", 800, 0.5)
    with pytest.raises(ValueError, match="length must leave room for the haystack of multi-key, got 300"):
        writer.sample("multi-key", 300, 0.5)


@pytest.mark.parametrize("kind", ["plain", "repeated", "needles", "several", "tracking"])
@pytest.mark.parametrize("length", [513, 2049])
def test_training_sequences_answer_from_what_stands_before(writer, kind, length):
    decode, answers = writer.encode.tokenizer.decode, 0
    for seed in range(25):
        writer.reseed(seed)
        tokens, labels = getattr(writer, kind)(length)
        assert tokens.shape == labels.shape == (length,)
        assert tokens.min() >= 0
        assert tokens.max() < writer.size
        edges = np.flatnonzero(np.diff(np.concatenate([[0], labels == tasks.ANSWER, [0]]).astype(int)))
        for start, stop in edges.reshape(-1, 2).tolist():
            answers += 1
            said = tokens[start:stop].tolist()
            if kind == "repeated":
                before = tokens[:start].tolist()
                assert any(before[i : i + len(said)] == said for i in range(len(before)))
                continue
            before = decode(tokens[:start].tolist())
            values = (
                decode([i for i in said if i])
                .strip()
                .removesuffix(".")
                .replace(", and ", ", ")
                .replace(" and ", ", ")
            )
            for value in values.split(" " if kind == "tracking" else ", "):
                assert value in before
    assert (answers > 0) == (kind != "plain")


def test_batch_mixes_as_told(writer):
    only_text = tasks.Mixture(plain=1.0, repeated=0.0)
    tokens, labels = writer.batch(1024, 256, only_text)
    assert tokens.shape == labels.shape == (4, 257)
    assert (labels == tasks.LANGUAGE).all()
    _, labels = writer.batch(4096, 512, tasks.Mixture(plain=0.0, repeated=0.0))
    assert (labels == tasks.ANSWER).any(1).all()
