"""`tq bench kv`: prompts, answers from packed caches, accounts of memory, interruptions."""

import json
import math

import pytest
from click.testing import CliRunner

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

from tqbench.errors import BenchError  # noqa: E402
from tqbench.kv import answering, needle  # noqa: E402
from tqbench.kv.accounting import geometry, measured_layer, packed_layer  # noqa: E402
from tqbench.kv.haystack import TASKS, Haystack, found_answers, read_texts  # noqa: E402
from tqbench.kv.journal import Journal  # noqa: E402
from tqbench.kv.memory import implied_weights, review_rows  # noqa: E402
from tqbench.kv.models import LoadedModel, load_model  # noqa: E402
from tqbench.kv.options import KVOptions  # noqa: E402
from tqbench.kv.registry import SUITES, load_suite  # noqa: E402
from tqcli.main import cli  # noqa: E402
from tqkv.cache import TurboQuantCache  # noqa: E402

SMALL = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "eos_token_id": None,
    "bos_token_id": None,
}


@pytest.fixture(scope="module")
def tokenizer():
    """One token a byte, so that every text can be read back."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    inner = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[])
    )
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = tokenizers.decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner)


@pytest.fixture(scope="module")
def loaded(tokenizer):
    torch.manual_seed(5)
    config = transformers.Qwen3Config(**SMALL, attn_implementation="turboquant")
    return LoadedModel(transformers.Qwen3ForCausalLM(config).eval(), tokenizer, "tiny", "tiny")


@pytest.mark.parametrize("introduced", [True, False])
@pytest.mark.parametrize("task", TASKS)
def test_prompt_has_its_length_and_holds_its_answer(tokenizer, task, introduced):
    haystack = Haystack(tokenizer, introduced=introduced)
    prompt = haystack.prompt(task, 3000, 0.5, 1)
    assert len(prompt.context) + len(prompt.question) == 3000
    context = tokenizer.decode(prompt.context)
    asked = tokenizer.decode(prompt.question)
    assert all(context.count(value) >= 1 and value not in asked for value in prompt.answer)
    for place in prompt.places:
        assert tokenizer.decode(prompt.context[place : place + 5]) in (" The ", " One ", " VAR ")
    assert prompt == haystack.prompt(task, 3000, 0.5, 1)
    assert prompt.answer != haystack.prompt(task, 3000, 0.5, 2).answer


def test_needle_lies_at_its_depth(tokenizer):
    haystack = Haystack(tokenizer, introduced=False)
    for depth in (0.0, 0.25, 0.5, 1.0):
        prompt = haystack.prompt("single", 3000, depth, 0)
        size = len(prompt.context)
        assert abs(prompt.places[0] - depth * size) < 100
    with pytest.raises(BenchError, match=r"lengths must be at least \d+ tokens for single, got 50"):
        haystack.prompt("single", 50, 0.5, 0)


def test_chain_is_in_order_and_tells_of_one_value(tokenizer):
    prompt = Haystack(tokenizer).prompt("tracking", 3000, 0.9, 3)
    assert list(prompt.places) == sorted(prompt.places)
    context = tokenizer.decode(prompt.context)
    for before, name in zip(prompt.answer, prompt.answer[1:], strict=False):
        assert f"VAR {name} = VAR {before}." in context


def test_answers_are_read_by_their_shape(tokenizer):
    haystack = Haystack(tokenizer)
    single = haystack.prompt("single", 2000, 0.5, 0)
    value = single.answer[0]
    assert found_answers(single, f" {value}. 17") == [value]
    assert found_answers(single, f" {value}1.") != [value]
    chain = haystack.prompt("tracking", 2000, 0.5, 0)
    assert found_answers(chain, " " + " ".join(chain.answer) + ". VAR") == list(chain.answer)
    several = haystack.prompt("multi-value", 2000, 0.5, 0)
    a, b, c, d = several.answer
    assert needle._scored(several, f" {d}, {a}, {b}, and {c}.")["exact"]
    part = needle._scored(several, f" {d}, {a}, {b}, and 1.")
    assert (part["exact"], part["recall"]) == (False, 0.75)


def test_text_of_a_folder_is_the_haystack(tokenizer, tmp_path):
    (tmp_path / "a.txt").write_text("Ships sail. Birds sing! Who knows?", encoding="utf-8")
    prompt = Haystack(tokenizer, read_texts(str(tmp_path))).prompt("single", 1000, 0.5, 0)
    context = tokenizer.decode(prompt.context)
    assert "Birds sing!" in context
    assert "grass" not in context
    with pytest.raises(BenchError, match="text_dir must be a folder"):
        read_texts(str(tmp_path / "absent"))


def test_states_taken_over_are_those_of_a_prefill(loaded):
    ids = torch.randint(0, 256, (300,), generator=torch.Generator().manual_seed(1)).tolist()
    full = answering.prefill(loaded.model, ids, transformers.DynamicCache(config=loaded.model.config))
    options = {"bits": 2, "recent_tokens": 16}
    ours = answering.repacked(loaded.model, ids, full, options)
    usual = answering.prefill(loaded.model, ids, TurboQuantCache(loaded.model.config, **options))
    for a, b in zip(ours.layers, usual.layers, strict=True):
        assert all(torch.equal(a.state()[name], b.state()[name]) for name in b.state())
    said = answering.answer(loaded.model, ids[:9], ours, 4, frozenset())
    want = answering.answer(loaded.model, ids[:9], usual, 4, frozenset())
    assert said == want
    assert ours.stats.fallback == 8
    assert ours.stats.plain == 2


def test_full_precision_answers_are_greedy(loaded):
    ids = list(range(40))
    cache = answering.prefill(loaded.model, ids[:30], transformers.DynamicCache(config=loaded.model.config))
    said = answering.answer(loaded.model, ids[30:], cache, 5, frozenset())
    for _ in range(5):
        with torch.no_grad():
            ids.append(int(loaded.model(torch.tensor([ids])).logits[0, -1].argmax()))
    assert said == ids[40:]


def test_a_context_that_is_not_packed_is_refused(loaded):
    cache = answering.prefill(loaded.model, list(range(60)), TurboQuantCache(loaded.model.config, 2))
    with pytest.raises(BenchError, match="a context of 60 tokens is not packed"):
        answering.answer(loaded.model, [1, 2], cache, 1, frozenset())


def test_wilson_interval():
    assert needle.wilson(0, 0) == (0.0, 1.0)
    assert needle.wilson(8, 10) == pytest.approx((0.490162, 0.943318), abs=1e-5)
    assert needle.wilson(10, 10)[1] == pytest.approx(1.0)


def test_run_goes_on_after_an_interruption(loaded, tmp_path, monkeypatch):
    options = KVOptions(
        bits=(2.0,), lengths=(900,), depths=(0.2, 0.6), tasks=("single",), samples=1, out=str(tmp_path)
    )
    inner, calls = answering.answer, []

    def failing(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return inner(*arguments)

    monkeypatch.setattr(answering, "answer", failing)
    with pytest.raises(KeyboardInterrupt):
        needle.run(options, loaded)
    record = needle.run(options, loaded)
    assert len(calls) == 3 + 2  # two answers were kept; the third was asked again, and the fourth
    again = needle.run(options, loaded)
    assert len(calls) == 5
    assert again["results"] == record["results"]
    assert {(r["cache"], r["depth"], r["n"]) for r in record["results"]} == {
        (cache, depth, 2 if depth is None else 1)
        for cache in ("chain-2", "full")
        for depth in (0.2, 0.6, None)
    }
    for path in needle.write_page(record, tmp_path, "page"):
        assert path.stat().st_size > 2000
    assert "<script src" not in (tmp_path / "page.html").read_text()


def test_journal_survives_a_torn_line_and_tells_settings_apart(tmp_path):
    journal = Journal(tmp_path, "a", {"x": 1})
    journal.put("k", {"v": 1})
    with journal.path.open("a") as file:
        file.write('{"key": "t')
    again = Journal(tmp_path, "a", {"x": 1})
    assert again.get("k") == {"v": 1}
    again.put("l", 2)
    assert [json.loads(line) for line in again.path.read_text().splitlines()][1:] == [
        {"key": "k", "result": {"v": 1}},
        {"key": "l", "result": 2},
    ]
    assert Journal(tmp_path, "a", {"x": 2}).get("k") is None
    assert Journal(tmp_path, "a", {"x": 1}, fresh=True).get("k") is None


@pytest.mark.parametrize("code", ["chain", "mse", "prod"])
def test_counted_bytes_are_those_of_a_real_cache(code):
    config = transformers.Qwen3Config(**SMALL)
    for tokens in (20, 148, 149, 700):
        got = measured_layer(config, (1, 16, 16), torch.bfloat16, tokens=tokens, bits=3.0, code=code)
        want = packed_layer((1, 16, 16), tokens, 3.0, code, 4, 128, 2)
        assert {part: got[part] for part in want} == want
        assert got["spare"] == 0


def test_geometry_is_that_of_a_real_cache():
    options = SMALL | {"num_hidden_layers": 4}
    for config in (
        transformers.Qwen3Config(**options, use_sliding_window=True, sliding_window=24, max_window_layers=2),
        transformers.Qwen3_5TextConfig(
            **options,
            linear_key_head_dim=16,
            linear_value_head_dim=16,
            linear_num_key_heads=2,
            linear_num_value_heads=4,
            layer_types=["linear_attention", "full_attention"] * 2,
        ),
    ):
        found = geometry(config, torch.float32)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        assert found.weights == sum(p.nbytes for p in model.parameters())
        cache = transformers.DynamicCache(config=config)
        with torch.no_grad():
            for part in (torch.zeros(1, 40, dtype=torch.long), torch.zeros(1, 1, dtype=torch.long)):
                model.eval()(part, past_key_values=cache)
        held = 0
        for layer in cache.layers:
            states = [getattr(layer, "keys", None), getattr(layer, "values", None)]
            for name in ("conv_states", "recurrent_states"):
                states += getattr(layer, name, {}).values()
            held += sum(s.nbytes for s in states if s is not None)
        assert found.full(41) + found.windows(41) + found.recurrent == held


def test_review_table_is_reproduced():
    rows = review_rows()
    assert [(r["tokens"], r["kv_gib"]) for r in rows] == [(32768, 2.0), (131072, 8.0), (262144, 16.0)]
    assert [round(r["ratio_review_weights"], 2) for r in rows] == [1.03, 1.12, 1.23]
    low, high = implied_weights()
    assert math.isclose(low, 16 * (1 - 0.15625 * 1.235) / 0.235)
    assert math.isclose(high, 8 * (1 - 0.15625 * 1.115) / 0.115)


def test_missing_weights_are_told_in_one_line(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    arguments = ["bench", "kv", "--model-id", "nobody/nothing-at-all", "--local-files-only"]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 2
    assert "hf download nobody/nothing-at-all" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_model_of_a_folder_is_loaded(loaded, tmp_path):
    loaded.model.save_pretrained(tmp_path)
    loaded.tokenizer.save_pretrained(tmp_path)
    again = load_model(KVOptions(model_id=str(tmp_path), local_files_only=True, device="cpu"))
    assert again.name == tmp_path.name
    assert again.model.config._attn_implementation == "turboquant"
    assert again.fingerprint() == loaded.fingerprint()
    with torch.no_grad():
        again.model.get_input_embeddings().weight[0, 0] += 1
    assert again.fingerprint() != loaded.fingerprint()


def test_memory_command_writes_its_record(loaded, tmp_path):
    loaded.model.config.save_pretrained(tmp_path / "model")
    arguments = ["bench", "kv", "--suite", "memory", "--model-id", str(tmp_path / "model"), "--quick"]
    result = CliRunner().invoke(cli, [*arguments, "--out", str(tmp_path), "--name", "m", "--json"])
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert record["suite"] == "kv-memory"
    assert all(row["measured"] == row["counted"] for row in record["measured"])
    assert {path.name for path in tmp_path.glob("m.*")} == {"m.json", "m.png", "m.html"}


def test_options_and_registry_are_checked():
    assert all(hasattr(load_suite(name), part) for name in SUITES for part in ("run", "show", "write_page"))
    with pytest.raises(BenchError, match="suite must be one of"):
        load_suite("nothing")
    with pytest.raises(BenchError, match="code must be one of chain, mse, prod, got 'x'"):
        KVOptions(code=("x",))
    with pytest.raises(BenchError, match="depths must be from 0 to 1"):
        KVOptions(depths=(1.5,))
    with pytest.raises(BenchError, match=r"tasks must be of .* got maze"):
        needle.make_grid(KVOptions(tasks=("maze",)))
    prod = KVOptions(bits=(2.0, 2.5), code=("chain", "prod")).packed()
    assert [(p["code"], p["bits"]) for p in prod] == [("chain", 2.0), ("chain", 2.5), ("prod", 2.0)]
