"""Source qwen on a tiny random-weight model and tokenizer made on the spot."""

from __future__ import annotations

import numpy as np
import pytest

from tqbench.errors import BenchError
from tqbench.sources import SourceOptions, load_source
from tqbench.sources.hidden_states import cut_passages

WORDS = [f"word{i}" for i in range(60)]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    torch = pytest.importorskip("torch", reason="source qwen needs torch, which is not installed")
    transformers = pytest.importorskip("transformers", reason="source qwen needs transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("model")
    tokenizer = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(["<unk>", *WORDS])}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(
        folder
    )
    torch.manual_seed(0)
    config = transformers.Qwen3Config(
        vocab_size=61,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        intermediate_size=24,
    )
    transformers.Qwen3ForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def text_folder(tmp_path):
    rng = np.random.default_rng(0)
    folder = tmp_path / "text"
    folder.mkdir()
    for name in ("a", "b"):
        folder.joinpath(f"{name}.txt").write_text(
            "\n".join(" ".join(rng.choice(WORDS, 70)) for _ in range(20))
        )
    return folder


def options(model_folder, text_folder, **more):
    return SourceOptions(
        model_id=str(model_folder), text_dir=str(text_folder), local_files_only=True, max_length=32, **more
    )


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TQ_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_batching_changes_nothing(model_folder, text_folder, pooling):
    one = load_source(
        "qwen", options(model_folder, text_folder, pooling=pooling, batch_size=1, use_cache=False)
    )
    many = load_source(
        "qwen", options(model_folder, text_folder, pooling=pooling, batch_size=7, use_cache=False)
    )
    assert one.d == 16
    np.testing.assert_allclose(one.base, many.base, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(one.base, axis=1), 1, rtol=1e-5)


def test_pooling_is_the_mean_over_tokens(model_folder):
    import torch

    from tqbench.sources.hidden_states import embed_passages, load_model

    wanted = SourceOptions(model_id=str(model_folder), local_files_only=True, layer=1, batch_size=2)
    model, tokenizer = load_model(wanted)
    texts = ["word1 word2 word3", "word4", "word5 word6"]
    found = embed_passages(model, tokenizer, texts, wanted)
    for row, text in zip(found, texts, strict=True):
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.inference_mode():
            states = model(input_ids=ids, output_hidden_states=True).hidden_states[1][0]
        np.testing.assert_allclose(row, states.mean(0).numpy(), atol=1e-5)


def test_second_run_reads_the_cache(model_folder, text_folder, monkeypatch):
    first = load_source("qwen", options(model_folder, text_folder))
    monkeypatch.setattr("tqbench.sources.hidden_states.load_model", lambda _: pytest.fail("loaded again"))
    again = load_source("qwen", options(model_folder, text_folder))
    np.testing.assert_array_equal(first.base, again.base)
    with pytest.raises(pytest.fail.Exception):
        load_source("qwen", options(model_folder, text_folder, layer=0))


@pytest.mark.parametrize(
    ("more", "message"),
    [({"layer": 9}, "layer must be in -3 .. 2, got 9"), ({"dtype": "int4"}, "dtype must be")],
)
def test_wrong_options_are_named(model_folder, text_folder, more, message):
    with pytest.raises(BenchError, match=message):
        load_source("qwen", options(model_folder, text_folder, **more))


def test_missing_weights_say_how_to_get_them(tmp_path, text_folder):
    pytest.importorskip("torch", reason="source qwen needs torch, which is not installed")
    pytest.importorskip("transformers", reason="source qwen needs transformers")
    with pytest.raises(BenchError, match=r"cannot be loaded .*`hf download Qwen/Qwen3-0\.6B`"):
        load_source("qwen", SourceOptions(text_dir=str(text_folder), local_files_only=True))


def test_missing_packages_say_what_to_install(text_folder, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    with pytest.raises(
        BenchError, match=r"needs torch, which is not installed: pip install 'tqann\[bench,kv\]'"
    ):
        load_source("qwen", SourceOptions(text_dir=str(text_folder)))


def test_pooling_is_checked_before_anything_is_loaded():
    with pytest.raises(BenchError, match="pooling must be"):
        load_source("qwen", SourceOptions(pooling="max"))


def test_passages_keep_every_word_in_order():
    text = "\n".join(f"{' '.join(f'w{i}-{j}' for j in range(30))}" for i in range(20))
    passages = list(cut_passages(text, 100))
    assert " ".join(passages).split() == text.split()[: len(" ".join(passages).split())]
    assert all(100 <= len(p) < 120 for p in passages[:-1])
