"""The suites distortion, throughput and attention of `tq bench kv`, on tiny models."""

from __future__ import annotations

import json

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")
tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed")

from click.testing import CliRunner  # noqa: E402

from tqbench.errors import BenchError  # noqa: E402
from tqbench.kv import attention, distortion, distortion_suite, generation, throughput  # noqa: E402
from tqbench.kv.models import LoadedModel, load_model  # noqa: E402
from tqbench.kv.options import KVOptions  # noqa: E402
from tqbench.kv.state_errors import capture, layer_errors  # noqa: E402
from tqcli.commands import cli  # noqa: E402


@pytest.fixture(scope="module")
def loaded():
    torch.manual_seed(0)
    config = transformers.Qwen3Config(
        vocab_size=61, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=64, max_position_embeddings=512, attn_implementation="turboquant",
    )  # fmt: skip
    model = transformers.Qwen3ForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4.0)
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({str(i): i for i in range(61)}, unk_token="0"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words)
    return LoadedModel(model, tokenizer, "tiny", "tiny")


def test_errors_of_states(loaded):
    """Nothing is lost on what was stored; errors fall by the code's rate; the unbiased scale has slope one."""
    states = capture(loaded.model, torch.randint(0, 61, (1, 128), generator=torch.Generator().manual_seed(1)))
    assert sorted(states) == [0, 1]
    assert loaded.model.config._attn_implementation == "turboquant"
    low, high = (layer_errors(loaded.model.config, states, {"bits": bits}) for bits in (2, 4))
    for a, b in zip(low, high, strict=True):
        for name in ("keys", "values", "inner", "logits", "output"):
            assert 0 < b[name] < a[name]
        assert abs(b["slope"] - 1) < 0.05
    assert 4 < low[0]["values"] / high[0]["values"] < 32
    exact = states[0]
    from tqbench.kv.state_errors import _errors

    none = _errors(exact, exact.keys.float(), exact.values.float())
    assert none["slope"] == pytest.approx(1)
    assert all(none[name] == 0 for name in ("keys", "values", "inner", "logits", "output"))
    shifted = _errors(exact, exact.keys.float() + 1.0, exact.values.float())
    assert shifted["keys"] > 0
    assert shifted["output"] < 1e-9  # a shift of all keys is a constant of every query
    assert shifted["logits"] < 1e-4


def test_steps_see_what_the_cache_holds(loaded):
    """A window that holds everything changes nothing; without one the divergence is that of the codes."""
    windows = torch.randint(0, 61, (2, 64), generator=torch.Generator().manual_seed(2))
    kept = distortion_suite.stepped(loaded.model, windows, 8, {"bits": 2, "recent_tokens": 128})
    packed = distortion_suite.stepped(
        loaded.model, windows, 8, {"bits": 2, "sink_tokens": 0, "recent_tokens": 0}
    )
    assert kept["tokens"] == packed["tokens"] == 16
    assert abs(kept["divergence"]) < 1e-6
    assert kept["agreement"] == 1
    assert packed["divergence"] > 1e-4
    assert packed["fallback"] == 2 * 8
    with pytest.raises(ValueError, match="steps must be less than 63, got 63"):
        distortion_suite.stepped(loaded.model, windows, 63, {})


def test_distortion_goes_on_and_draws(loaded, tmp_path, monkeypatch):
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text(" ".join(str(i * i % 61) for i in range(400)))
    given = {"bits": (2.0, 4.0), "code": ("chain", "mse"), "lengths": (64,), "samples": 2}
    options = KVOptions(
        suite="distortion", text_dir=str(tmp_path / "text"), out=str(tmp_path), sink_tokens=0,
        recent_tokens=0, **given,
    )  # fmt: skip
    record = distortion_suite.run(options, loaded)
    assert [(r["code"], r["bits"]) for r in record["results"]] == [
        ("chain", 2), ("chain", 4), ("mse", 2), ("mse", 4)
    ]  # fmt: skip
    assert len(record["layers"]) == 8
    assert [r["bits"] for r in record["ratios"]] == [2, 4]
    assert all(r["mse_over_chain"] > 1 for r in record["ratios"])
    monkeypatch.setattr(distortion, "measure", None)  # nothing is measured again
    assert distortion_suite.run(options, loaded)["results"] == record["results"]
    for path in distortion_suite.write_page(record, tmp_path, "page"):
        assert path.stat().st_size > 4000
    assert "at least 2.2 wanted" in (tmp_path / "page.html").read_text()
    with pytest.raises(BenchError, match="lengths must be a multiple of 16"):
        distortion_suite.run(KVOptions(suite="distortion", lengths=(50,), out=str(tmp_path)), loaded)


def test_rates_of_the_suites():
    assert KVOptions(suite="distortion").bits == (2, 2.5, 3, 3.5, 4)
    assert KVOptions(suite="needle").bits == (2, 3.5)
    assert len(KVOptions(suite="distortion").packed()) == 13


def test_throughput_of_random_weights(tmp_path):
    command = [
        "bench", "kv", "--suite", "throughput", "--model-id", "random:tiny-qwen3-8b", "--lengths", "64", "--batches",
        "2", "--samples", "3", "--repeats", "2", "--out", str(tmp_path), "--name", "t", "--json", "--device", "cpu",
        "--bits", "3.5", "--caches", "dynamic,static,chain-3.5",
    ]  # fmt: skip
    result = CliRunner().invoke(cli, command)
    assert result.exit_code == 0, result.output
    rows = {r["cache"]: r for r in json.loads((tmp_path / "t.json").read_text())["results"]}
    assert set(rows) == {"dynamic", "static", "chain-3.5"}
    for row in rows.values():
        assert row["status"] == "ok"
        assert len(row["runs"]) == 2
        assert row["first_token_seconds"] > 0
        assert row["tokens_per_second"] == pytest.approx(2e3 / row["step_ms"])
    assert (tmp_path / "t.png").stat().st_size > 4000


def test_every_cache_steps_or_says_why(loaded, tmp_path, monkeypatch):
    monkeypatch.setattr(generation, "_installed", lambda _: False)
    options = KVOptions(
        suite="throughput", bits=(2.0,), lengths=(160,), batches=(1,), samples=2, repeats=1, out=str(tmp_path)
    )
    record = throughput.run(options, loaded)
    rows = {r["cache"]: r for r in record["results"]}
    assert {n for n, r in rows.items() if r["status"] == "ok"} == {
        "dynamic", "static", "chain-2", "chain-2 fixed"
    }  # fmt: skip
    assert rows["hqq-4"]["reason"] == "hqq is not installed: pip install hqq"
    assert rows["static graph"]["reason"] == "graphs need a CUDA device"
    assert throughput.run(options, loaded)["results"] == record["results"]
    with pytest.raises(BenchError, match="caches must be of dynamic"):
        throughput.run(KVOptions(suite="throughput", caches=("x",)), loaded)


def test_attention_on_the_processor(tmp_path):
    options = KVOptions(
        suite="attention", heads=("4/2/64",), lengths=(256,), batches=(2,), repeats=2, device="cpu", bits=(2.0, 4.0),
        out=str(tmp_path),
    )  # fmt: skip
    record = attention.run(options)
    plain, low, high = record["results"]
    assert (plain["method"], plain["difference"]) == ("sdpa", 0)
    assert 0.01 < high["difference"] < low["difference"] < 0.6
    assert plain["bytes"] == 2 * 2 * 2 * 256 * 64 * 4
    assert low["bytes"] == 2 * 2 * 2 * 256 * (64 * 2 / 8 + 2)
    assert "the fused kernel needs CUDA" in record["settings"]["path"]
    for path in attention.write_page(record, tmp_path, "page"):
        assert path.stat().st_size > 4000
    assert attention.run(options)["results"] == record["results"]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"heads": ("5/2/64",)}, "heads must be QUERY/KEY-VALUE/DIMENSION"),
        ({"heads": ("4/2",)}, "heads must be QUERY/KEY-VALUE/DIMENSION"),
        ({"heads": ("4/2/64",), "lengths": (100,)}, "lengths must be multiples of 16"),
        ({"code": ("mse",)}, "code must be chain"),
        ({"model_id": "random:other"}, "model_id must be one of random:qwen3-8b"),
    ],
)
def test_wrong_requests_of_attention(given, says):
    with pytest.raises(BenchError, match=says):
        attention.run(KVOptions(suite="attention", device="cpu", **given))


def test_random_weights_answer_nothing():
    with pytest.raises(BenchError, match="suite needle needs trained weights"):
        load_model(KVOptions(suite="needle", model_id="random:tiny-qwen3-8b", device="cpu"))
