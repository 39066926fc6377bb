"""The probe: its network, its training, and its weights on disk."""

import io
import json
import multiprocessing
import shutil
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

ROOT = Path(__file__).resolve().parents[2]
PROBE = ROOT / "benchmarks" / "probe"
sys.path.insert(0, str(PROBE))

import export as exporting  # noqa: E402
import score  # noqa: E402
import tasks  # noqa: E402
import tokenizer as tokenizing  # noqa: E402
import train as training  # noqa: E402
import wording  # noqa: E402
from muon import Muon, orthogonalized  # noqa: E402
from network import Network, Shape  # noqa: E402
from schedule import RECIPES, Rates, Stage  # noqa: E402

from tqbench.errors import BenchError  # noqa: E402
from tqbench.kv.probe import WEIGHTS, load_probe, probe_folder, probe_text, quantize, restore  # noqa: E402

MODEL = PROBE / "model"
TINY = Shape(
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=16,
    intermediate_size=48,
)
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


def random_network(seed=0, shape=TINY):
    """A network in which every parameter matters: matrices that start at zero are random too."""
    network = Network(shape, dtype=torch.float32, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters.values():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return network


# The network


def test_network_is_transformers_qwen3():
    network = random_network(1)
    model = exporting.transformers_model(TINY, network.parameters, "cpu", torch.float32)
    ids = torch.randint(0, TINY.vocab_size, (2, 33), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(model(ids).logits, network.logits(ids), rtol=0, atol=1e-4)


def test_losses_are_weighted_cross_entropies():
    network = random_network(2)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, TINY.vocab_size, (3, 18), generator=generator)
    weights = torch.rand(2, 3 * 17, generator=generator)
    sums, right = network.losses(ids[:, :-1], ids[:, 1:], weights)
    logits = network.logits(ids[:, :-1]).flatten(0, 1)
    entropy = torch.nn.functional.cross_entropy(logits, ids[:, 1:].flatten(), reduction="none")
    assert torch.allclose(sums.detach(), weights @ entropy, rtol=1e-5)
    assert right == (logits.argmax(-1) == ids[:, 1:].flatten()).sum()
    sums.sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters.values())


def test_network_refuses_other_parameters():
    network = random_network()
    state = dict(network.parameters)
    with pytest.raises(ValueError, match=r"these differ: \['extra'\]"):
        network.load(state | {"extra": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"model.norm.weight must be \(32,\), got \(1,\)"):
        network.load(state | {"model.norm.weight": torch.zeros(1)})


def test_orthogonalized_has_singular_values_near_one():
    matrices = torch.randn(3, 24, 40, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalized(matrices))
    assert values.min() > 0.6
    assert values.max() < 1.3


def test_muon_treats_a_matrix_as_it_treats_its_transpose():
    generator = torch.Generator().manual_seed(0)
    wide, gradient = torch.randn(8, 32, generator=generator), torch.randn(8, 32, generator=generator)
    low, high = torch.nn.Parameter(wide.clone()), torch.nn.Parameter(wide.T.clone())
    low.grad, high.grad = gradient.clone(), gradient.T.clone()
    Muon([low, high], decay=0.0).step(0.1)
    change = low.detach() - wide
    assert torch.allclose(high.detach().T - wide, 2.0 * change, atol=1e-5)  # sqrt(32 / 8)
    assert (change * gradient).sum() < 0
    assert low.grad is None


def test_rates_fall_to_zero_and_stages_are_in_order():
    rates = Rates(warm_up=4)
    assert [rates.multiplier(step, 0.0) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert [rates.multiplier(9, passed) for passed in (0.25, 1.0)] == [0.75, 0.0]
    for recipe in RECIPES.values():
        starts = [stage.start for stage in recipe.stages]
        assert starts[0] == 0.0
        assert starts == sorted(starts)
        for stage in recipe.stages:
            assert sum(stage.mixture.shares) == pytest.approx(1.0)
            assert len(stage.mixture.shares) == len(stage.mixture.lengths)


def test_training_lowers_the_loss(writer):
    network = Network(TINY, dtype=torch.float32)
    tokens, labels = (torch.from_numpy(a) for a in writer.batch(512, 128, tasks.Mixture((128,))))

    def loss():
        with torch.no_grad():
            weights = training.loss_weights(labels[:, 1:].reshape(-1))
            return network.losses(tokens[:, :-1], tokens[:, 1:], weights)[0][0].item()

    before, stage = loss(), multiprocessing.Value("i", 0)
    stages = (Stage(0.0, tasks.Mixture()), Stage(1e-9, tasks.Mixture()))
    done = training.train(
        network,
        iter(lambda: (tokens, labels), None),
        stages,
        stage,
        Rates(warm_up=1),
        60.0,
        io.StringIO(),
        14,
    )
    assert done["steps"] == 14
    assert done["tokens"] == 14 * 512
    assert stage.value == 1
    assert loss() < before - 1.0


# Weights on disk


def test_quantized_weights_are_within_half_a_step():
    state = {name: p.detach() for name, p in random_network().parameters.items()}
    restored = restore(quantize(state))
    assert restored.keys() == state.keys()
    for name, value in state.items():
        if value.dim() == 2:
            step = value.abs().amax(1, keepdim=True) / 127
            assert ((restored[name] - value).abs() <= 0.5001 * step).all()
        else:
            assert torch.equal(restored[name], value.bfloat16().float())


def test_restore_wants_a_scale_for_each_row():
    stored = quantize({"a": torch.ones(3, 4)})
    with pytest.raises(BenchError, match="one scale a row of a"):
        restore({"a": stored["a"]})
    with pytest.raises(BenchError, match="one scale a row of a"):
        restore(stored | {"a.scale": torch.ones(2)})


@pytest.fixture
def saved(tmp_path, encoder, monkeypatch):
    network = random_network(5)
    state = {name: p.detach() for name, p in network.parameters.items()}
    exporting.export(TINY, state, encoder.tokenizer, tmp_path)
    exporting.save_checkpoint(state, tmp_path)
    monkeypatch.setenv("TQ_PROBE", str(tmp_path))
    return tmp_path, network


def test_exported_weights_load_as_a_plain_qwen3(saved):
    _, network = saved
    model, tokenizer = load_probe(attn_implementation="eager")
    assert type(model).__name__ == "Qwen3ForCausalLM"
    assert not model.training
    assert model.config._attn_implementation == "eager"
    assert tokenizer("VAR A = 12")["input_ids"] == tokenizer.backend_tokenizer.encode("VAR A = 12").ids
    network.load(restore(quantize({name: p.detach() for name, p in network.parameters.items()})))
    ids = torch.arange(40)[None]
    with torch.no_grad():
        assert torch.allclose(model(ids).logits, network.logits(ids), rtol=0, atol=1e-3)
    assert load_probe(torch.bfloat16)[0].dtype == torch.bfloat16


def test_training_goes_on_from_a_checkpoint_or_from_stored_weights(saved):
    folder, network = saved
    exact = {name: p.detach() for name, p in network.parameters.items()}
    for name, value in exporting.load_checkpoint(folder).items():
        assert torch.equal(value, exact[name].bfloat16().float())
    (folder / exporting.CHECKPOINT).unlink()
    stored = restore(quantize(exact))
    for name, value in exporting.load_checkpoint(folder).items():
        assert torch.equal(value, stored[name])
    (folder / WEIGHTS).unlink()
    with pytest.raises(FileNotFoundError, match=r"--init must name a folder with checkpoint.safetensors or"):
        exporting.load_checkpoint(folder)


def test_loader_says_what_is_missing(saved, tmp_path):
    folder, _ = saved
    (folder / "config.json").rename(folder / "elsewhere.json")
    with pytest.raises(BenchError, match=r"lacks config.json; .*set TQ_PROBE"):
        probe_folder()
    with pytest.raises(BenchError, match=r"lacks config.json"):
        load_probe()


def test_loader_refuses_weights_that_do_not_fit(saved):
    folder, _ = saved
    whole = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(whole | {"num_hidden_layers": 3}))
    with pytest.raises(BenchError, match=r"do not fit its config.json"):
        load_probe()
    (folder / "config.json").write_text(json.dumps(whole | {"hidden_size": 16}))
    with pytest.raises(BenchError, match=r"do not fit its config.json"):
        load_probe()
    (folder / "config.json").write_text(json.dumps(whole))
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-100])
    with pytest.raises(BenchError, match="not a whole file of weights"):
        load_probe()


def test_text_is_asked_for_by_name(saved):
    folder, _ = saved
    with pytest.raises(BenchError, match=r"lacks text.txt"):
        probe_text()
    (folder / "text.txt").write_text("é\n", encoding="utf-8")
    assert probe_text() == "é\n"


def test_folder_is_found_from_below_and_told_when_absent(tmp_path, monkeypatch):
    monkeypatch.delenv("TQ_PROBE", raising=False)
    folder = tmp_path / "benchmarks" / "probe" / "model"
    shutil.copytree(MODEL, folder)
    for name in ("config.json", WEIGHTS):
        (folder / name).touch()
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    assert probe_folder() == folder
    monkeypatch.setattr("tqbench.kv.probe.__file__", str(below / "x" / "y" / "z" / "probe.py"))
    shutil.rmtree(folder)
    with pytest.raises(BenchError, match=r"was not found in .*; it is part of the repository"):
        probe_folder()


def test_written_text_is_the_same_for_a_seed(encoder):
    model = exporting.transformers_model(TINY, random_network(4).parameters, "cpu", torch.float32)
    first = score.write_text(model, encoder.tokenizer, 2, 16, seed=1)
    assert first == score.write_text(model, encoder.tokenizer, 2, 16, seed=1)
    assert first != score.write_text(model, encoder.tokenizer, 2, 16, seed=2)


def test_perplexity_of_a_network_that_knows_nothing(text):
    network = Network(TINY, dtype=torch.float32)
    with torch.no_grad():
        network.parameters["model.embed_tokens.weight"].zero_()
    model = exporting.transformers_model(TINY, network.parameters, "cpu", torch.float32)
    assert score.perplexity(model, text[:700], 256) == pytest.approx(TINY.vocab_size, rel=1e-5)
