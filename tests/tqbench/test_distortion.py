"""The distortion of packed caches, measured on a tiny model."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = transformers.Qwen3Config(
        vocab_size=61, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=64, max_position_embeddings=256,
    )  # fmt: skip
    model = transformers.Qwen3ForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4.0)
    return model


def test_measure(model):
    """More bits diverge less, the chain less than the paper's code, and the model is left as it was."""
    from tqbench.kv.distortion import measure

    windows = torch.randint(0, 61, (2, 64), generator=torch.Generator().manual_seed(1))
    low, high, paper = measure(
        model, windows, [{"bits": 2}, {"bits": 4}, {"bits": 2, "code": "mse", "centre_keys": False}]
    )
    assert 0 < high.divergence < low.divergence < paper.divergence
    assert 0 <= low.agreement < high.agreement <= 1
    assert low.full_loss == paper.full_loss
    assert low.tokens == 126
    assert low.effective_bits == 2 + 16 / 64
    assert model.config._attn_implementation == "sdpa"
    assert set(low.as_dict()) == {"tokens", "divergence", "agreement", "loss", "full_loss", "effective_bits"}


def test_plans_see_the_queries(model, monkeypatch):
    """A window's queries are at hand for its plan, and attention is tqkv's own again afterwards."""
    import tqkv.codec
    from tqbench.kv.distortion import measure
    from tqkv.attention import turboquant_attention_forward

    shapes, inner = [], tqkv.codec.fit_key_plan

    def noted(keys, mean, rotation, queries, seen):
        shapes.append(tuple(queries.shape))
        return inner(keys, mean, rotation, queries, seen)

    monkeypatch.setattr("tqkv.codec.fit_key_plan", noted)
    windows = torch.randint(0, 61, (1, 160), generator=torch.Generator().manual_seed(1))
    measure(model, windows, [{"bits": 2, "key_plan": "calibrated"}])
    assert shapes == [(1, 4, 160, 64)] * 2
    assert transformers.AttentionInterface()["turboquant"] is turboquant_attention_forward


def test_record(model, tmp_path, capsys):
    """The program writes a row for every rate and code."""
    import json

    from tokenizers import Tokenizer, models, pre_tokenizers

    from tqbench.kv.distortion import main

    words = Tokenizer(models.WordLevel({str(i): i for i in range(61)}, unk_token="0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    transformers.PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(tmp_path / "model")
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "text.txt").write_text(" ".join(str(i * 7 % 61) for i in range(200)))
    arguments = [
        "--model",
        str(tmp_path / "model"),
        "--text",
        str(tmp_path / "text.txt"),
        "--out",
        str(tmp_path),
    ]
    main([*arguments, "--windows", "2", "--tokens", "32", "--name", "record"])
    record = json.loads((tmp_path / "record.json").read_text())
    assert [(row["bits"], row["code"]) for row in record["results"]] == [
        (bits, code) for bits in (2, 2.5, 3, 3.5, 4) for code in ("chain", "mse")
    ]
    assert str(tmp_path) not in json.dumps(record)
    assert len(capsys.readouterr().out.splitlines()) == 10
