"""LongBench: its metrics by hand-computed examples, its prompts, its files, and a run from end to end."""

import json
import random

import pytest
from click.testing import CliRunner

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

from tqbench.errors import BenchError  # noqa: E402
from tqbench.kv import answering  # noqa: E402
from tqbench.kv.longbench import metrics, suite  # noqa: E402
from tqbench.kv.longbench.metrics import METRICS, check_packages, score  # noqa: E402
from tqbench.kv.longbench.prompting import make_prompt  # noqa: E402
from tqbench.kv.longbench.rouge import rouge_l  # noqa: E402
from tqbench.kv.longbench.scores import score_rows  # noqa: E402
from tqbench.kv.longbench.sources import Example, download, read_folder  # noqa: E402
from tqbench.kv.longbench.tasks import E_TASKS, TASKS  # noqa: E402
from tqbench.kv.models import LoadedModel  # noqa: E402
from tqbench.kv.options import KVOptions  # noqa: E402
from tqcli.main import cli  # noqa: E402

CLASSES = ("Date", "Other date", "Animal", "City", "Other city")


@pytest.fixture(scope="module")
def tokenizer():
    """One token a byte."""
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
    config = transformers.Qwen3Config(
        vocab_size=256,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        eos_token_id=None,
        bos_token_id=None,
        attn_implementation="turboquant",
    )
    return LoadedModel(transformers.Qwen3ForCausalLM(config).eval(), tokenizer, "tiny", "tiny")


def row(task="hotpotqa", **other):
    known = {
        "input": "Who sails?",
        "context": "Ada sails north. " * 40,
        "answers": ["Ada"],
        "length": 120,
        "dataset": task,
        "language": "en",
        "all_classes": None,
        "_id": "0",
    }
    return known | other


def write(folder, name, *rows):
    lines = "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in rows)
    (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    return str(folder)


@pytest.mark.parametrize(
    ("task", "said", "answers", "want"),
    [
        ("hotpotqa", "The Cat, sat!", ["a cat sat down"], 0.8),  # cat sat: 2/2 and 2/3
        ("hotpotqa", "cat cat", ["dog", "cat"], 2 / 3),  # the best of the answers
        ("hotpotqa", "the", ["a"], 0.0),
        ("triviaqa", "\n\nParis\nPassage: London", ["Paris"], 1.0),
        ("hotpotqa", "Paris\nLondon", ["Paris"], 2 / 3),  # no rule of the first line here
        ("qmsum", "the cat sat", ["the cat ran"], 2 / 3),
        ("qmsum", "", ["the cat ran"], 0.0),
        ("qmsum", ".", ["the cat ran"], 0.0),
        ("samsum", "Ann calls Bob\nDialogue:", ["Ann calls Bob"], 1.0),
        ("passage_count", "5, or 5, or 12", ["5"], 2 / 3),
        ("passage_count", "none", ["5"], 0.0),
        ("passage_count", "15", ["5"], 0.0),
        ("passage_retrieval_en", "Paragraph 3 or 4", ["Paragraph 3"], 0.5),
        ("passage_retrieval_zh", "段落12", ["段落12"], 1.0),
        ("lcc", "\n# a comment\n```\nx = 1\ny", ["x = 2"], 0.8),  # 2 * 4 / 10
        ("lcc", "x = 12", ["x = 1345"], 0.71),  # 2 * 5 / 14 = 0.714, in whole hundredths
        ("lcc", "# all comments", ["x"], 0.0),
        ("lcc", "// all comments", [""], 1.0),
    ],
)
def test_metrics(task, said, answers, want):
    assert score(TASKS[task], said, answers) == pytest.approx(want, abs=1e-7)


@pytest.mark.parametrize(
    ("task", "said", "answers", "want"),
    [
        ("multifieldqa_zh", "北京\uff0c中国。", ["中国"], 2 / 3),  # 北京 中国: 1/2 and 1
        ("multifieldqa_zh", "\uff0c。", ["中国"], 0.0),
        ("vcsum", "北京中国", ["中国"], 2 / 3),
    ],
)
def test_metrics_of_chinese(task, said, answers, want):
    pytest.importorskip("jieba")
    assert score(TASKS[task], said, answers) == pytest.approx(want, abs=1e-7)


@pytest.mark.parametrize(
    ("said", "true", "want"),
    [
        ("w1 w2 w6 w7 w8. w1 w3 w8 w9 w5", "w1 w2 w3 w4 w5", 8 / 13),  # 4 in common; of 8 said and of 5 true
        ("a a a b", "a b b", 1.0),  # words count once
        ("b a", "a b", 1 / 2),  # of two subsequences the package takes one: 1/2 and 1/2
        ("one. two", "two. one", 1.0),  # over all pairs of sentences
        ("a.  .b", "a b", 4 / 5),  # a blank sentence is a word, too: 2/3 and 1
        ("a b", "c d", 0.0),
        ("...", "a", 0.0),
    ],
)
def test_rouge_l_by_hand(said, true, want):
    assert rouge_l(said, true) == pytest.approx(want, abs=2e-8)  # the package adds 1e-8 to P + R


def test_rouge_l_is_that_of_the_package():
    package = pytest.importorskip("rouge").Rouge(metrics=["rouge-l"])
    choice = random.Random(0)
    for _ in range(200):
        said, true = (
            "".join(f"w{choice.randrange(20)}{choice.choice('  .')}" for _ in range(choice.randrange(1, 40)))
            for _ in range(2)
        )
        assert rouge_l(said, true) == package.get_scores(said, true)[0]["rouge-l"]["f"]


@pytest.mark.parametrize(
    ("said", "answer", "want"),
    [
        ("Animal", "Animal", 1.0),
        ("Animal or City", "City", 0.5),
        ("Other date", "Other date", 1.0),  # "date" alone is no class: classes are compared with case
        ("animal", "Animal", 0.0),
        ("City\nAnimal", "City", 1.0),  # the first line alone
        ("", "City", 0.0),
    ],
)
def test_classification(said, answer, want):
    assert score(TASKS["trec"], said, [answer], CLASSES) == want


def test_classification_passes_over_the_class_after_a_removed_one():
    nested = ("a", "ab", "abc")
    # All three are named. Upstream removes "a", passes over "ab", and ends with two.
    assert score(TASKS["lsht"], "abc", ["abc"], nested) == 0.5


def test_rouge_of_one_endless_sentence_is_0():
    words = [
        f"w{i}" for i in range(991)
    ]  # the package recurses, and meets Python's limit at the last of them
    assert score(TASKS["qmsum"], " ".join(words), [" ".join(words)]) == 0.0
    assert score(TASKS["qmsum"], " ".join(words[:990]), [" ".join(words[:990])]) == pytest.approx(1.0)


def test_every_task_has_a_metric_and_an_official_form():
    assert len(TASKS) == 21
    assert len(E_TASKS) == 13
    assert {task.metric for task in TASKS.values()} == {*METRICS, "classification"}
    assert all("{context}" in task.prompt for task in TASKS.values())
    without_input = {name for name, task in TASKS.items() if "{input}" not in task.prompt}
    assert without_input == {"gov_report", "multi_news", "vcsum", "passage_count", "lcc"}
    assert {n for n, t in TASKS.items() if not t.chat} == {
        "trec",
        "triviaqa",
        "samsum",
        "lsht",
        "lcc",
        "repobench-p",
    }
    assert {n for n, t in TASKS.items() if t.first_line} == {"trec", "triviaqa", "samsum", "lsht"}
    lengths = {name: task.answer_tokens for name, task in TASKS.items()}
    assert {n for n, size in lengths.items() if size == 512} == {"gov_report", "qmsum", "multi_news", "vcsum"}
    assert {n for n, size in lengths.items() if size == 128} == {
        "narrativeqa",
        "qasper",
        "dureader",
        "samsum",
    }
    few = {"multifieldqa_en", "multifieldqa_zh", "trec", "lsht", "lcc", "repobench-p"}
    assert {n for n, size in lengths.items() if size == 64} == few
    assert sum(size == 32 for size in lengths.values()) == 7


def test_prompt_is_whole_and_its_end_is_asked(tokenizer):
    example = Example("Who {sails}?", "Ada {0} sails.", ("Ada",), 3, (), "k")
    prompt = make_prompt(TASKS["hotpotqa"], example, tokenizer, 5000)
    whole = tokenizer.decode(prompt.context + prompt.question)
    assert whole == TASKS["hotpotqa"].prompt.replace("{context}", "Ada {0} sails.").replace(
        "{input}", "Who {sails}?"
    )
    assert tokenizer.decode(prompt.question).endswith("Question: Who {sails}?\nAnswer:")
    assert tokenizer.decode(prompt.context).strip().endswith("Ada {0} sails.")
    assert not prompt.cut


def test_prompt_is_cut_in_the_middle(tokenizer):
    example = Example("Who?", "north " * 100 + "MIDDLE" + " south" * 100, ("Ada",), 3, (), "k")
    whole = make_prompt(TASKS["hotpotqa"], example, tokenizer, 5000)
    prompt = make_prompt(TASKS["hotpotqa"], example, tokenizer, 1001)
    ids, want = prompt.context + prompt.question, whole.context + whole.question
    assert prompt.cut
    assert ids == want[:500] + want[-500:]
    assert prompt.question == whole.question


def test_chat_template_is_for_tasks_that_take_one(tokenizer):
    chatty = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    chatty.chat_template = (
        "{% for m in messages %}<u>{{ m['content'] | trim }}</u>{% endfor %}"
        "{% if add_generation_prompt %}<a>{% endif %}{% if enable_thinking is false %}!{% endif %}"
    )
    example = Example("Who?", "Ada sails.", ("Ada",), 3, CLASSES, "k")

    def text(task, **other):
        prompt = make_prompt(TASKS[task], example, chatty, 5000, **other)
        return chatty.decode(prompt.context + prompt.question), chatty.decode(prompt.question)

    whole, asked = text("hotpotqa")
    assert whole.startswith("<u>Answer the question")
    assert asked.startswith("Answer the question")
    assert asked.endswith("Who?\nAnswer:</u><a>!")
    assert "<u>" not in text("hotpotqa", chat=False)[0]
    for task in ("trec", "triviaqa", "samsum", "lsht", "lcc", "repobench-p"):
        assert "<u>" not in text(task)[0]


def test_folders_and_names(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    write(data, "trec", row("trec", all_classes=list(CLASSES), answers=["City"]))
    write(data, "qasper", row("qasper"))
    write(data, "mine", row("musique"))
    write(data, "qasper_e", row("qasper", length=8000))
    assert [s.name for s in read_folder(tmp_path)] == ["qasper", "trec", "mine"]
    assert read_folder(data, ("mine",))[0].task is TASKS["musique"]
    (only,) = read_folder(tmp_path, ("qasper",), e=True)
    assert (only.name, only.task.name, only.examples[0].bucket) == ("qasper_e", "qasper", "8k+")
    with pytest.raises(BenchError, match=r"lacks hotpotqa.jsonl; it has qasper, trec, mine"):
        read_folder(tmp_path, ("hotpotqa",))
    with pytest.raises(BenchError, match="data_dir must be a folder"):
        read_folder(tmp_path / "absent")


@pytest.mark.parametrize(
    ("task", "change", "message"),
    [
        ("hotpotqa", {"answers": []}, "answers must not be empty"),
        ("hotpotqa", {"answers": "Ada"}, "answers must be list, got 'Ada'"),
        ("hotpotqa", {"answers": [1]}, "answers must be a list of str"),
        ("hotpotqa", {"context": None}, "context must be str, got None"),
        ("hotpotqa", {"length": "12"}, "length must be int, got '12'"),
        ("trec", {}, "all_classes must name the classes of trec"),
        ("passage_retrieval_en", {"answers": ["3"]}, r"answers of passage_retrieval_en must match"),
    ],
)
def test_lines_that_are_no_examples_are_named(tmp_path, task, change, message):
    good = row(task, all_classes=list(CLASSES), answers=["Paragraph 3"])
    write(tmp_path, task, good, row(task) | change)
    with pytest.raises(BenchError, match=rf"{task}\.jsonl line 2: {message}"):
        read_folder(tmp_path)


def test_files_that_are_no_data_are_named(tmp_path):
    path = tmp_path / "qasper.jsonl"
    for text, message in (
        ("{", "line 1 must be JSON"),
        ("[1]", "must be a JSON object"),
        ("\n", "must hold examples"),
    ):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(BenchError, match=rf"qasper\.jsonl.*{message}"):
            read_folder(tmp_path)
    path.unlink()
    write(tmp_path, "odd", row("poems"))
    with pytest.raises(
        BenchError, match=r"odd\.jsonl line 1: dataset must be a task of LongBench, got 'poems'"
    ):
        read_folder(tmp_path)


def test_a_package_that_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(
        metrics.importlib.util, "find_spec", lambda name: None if name == "jieba" else object()
    )
    check_packages([TASKS["qmsum"], TASKS["lcc"]])
    with pytest.raises(BenchError, match=r"metric of vcsum needs jieba.*pip install jieba"):
        check_packages([TASKS["vcsum"]])


def test_without_data_and_network_it_says_what_to_fetch(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(BenchError, match=r"LongBench cannot be downloaded.*hf download.*--data-dir FOLDER"):
        download(local_files_only=True)


def test_scores_by_hand():
    def answer(task, key, cache, value, bucket="0-4k"):
        return {
            "task": task, "metric": "qa_f1", "key": key, "cache": cache, "score": value, "bucket": bucket,
            "pred": str(value), "cut": False, "packed": cache != "full", "effective_bits": 2.0 * (cache != "full"),
        }  # fmt: skip

    rows = [
        answer("a", "1", "full", 1.0), answer("a", "1", "two", 0.5),
        answer("a", "2", "full", 0.0, "8k+"), answer("a", "2", "two", 0.0, "8k+"),
        answer("b", "3", "full", 1.0), answer("b", "3", "two", 1.0),
    ]  # fmt: skip
    table = {(r["task"], r["cache"], r["bucket"]): r for r in score_rows(rows, buckets=True)}
    two = table["a", "two", None]
    assert (two["score"], two["difference"], two["same"], two["n"]) == (25.0, -25.0, 1, 2)
    assert (two["low"], two["high"]) == (0.0, 50.0)
    assert (two["difference_low"], two["difference_high"]) == (-50.0, 0.0)
    assert table["b", "two", None]["low"] is None
    assert table["average", "two", None]["score"] == 62.5  # tasks weigh the same
    assert table["average", "full", None]["difference"] == 0.0
    assert table["average", "two", "0-4k"]["score"] == 75.0
    assert table["a", "two", "8k+"]["score"] == 0.0
    assert ("b", "two", "8k+") not in table


def test_end_to_end(loaded, tmp_path, monkeypatch):
    data = tmp_path / "data"
    data.mkdir()
    long = [row(context=f"{name} sails north. " * 20, length=n) for name, n in (("Ada", 100), ("Bo", 5000))]
    write(data, "hotpotqa_e", *long)
    write(data, "samsum_e", row("samsum", input="Dialogue: x\nSummary:", context="Ada: hi\n" * 3))
    options = KVOptions(
        suite="longbench", data_dir=str(data), longbench_e=True, bits=(2.0,), lengths=(400,), recent_tokens=16,
        out=str(tmp_path / "out"),
    )  # fmt: skip
    record = suite.run(options, loaded)
    rows = {(r["task"], r["cache"], r["bucket"]): r for r in record["results"]}
    assert rows["hotpotqa_e", "chain-2", None]["packed"] == rows["hotpotqa_e", "chain-2", None]["n"] == 2
    assert rows["hotpotqa_e", "chain-2", "4-8k"]["n"] == 1
    assert rows["hotpotqa_e", "full", None]["cut"] == 2
    assert (rows["samsum_e", "chain-2", None]["packed"], rows["samsum_e", "full", None]["cut"]) == (1, 0)
    assert 2 < rows["hotpotqa_e", "chain-2", None]["effective_bits"] < 4
    folder = tmp_path / "out" / record["settings"]["predictions"]
    lines = [
        json.loads(line) for line in (folder / "full" / "hotpotqa.jsonl").read_text("utf-8").splitlines()
    ]
    assert [line["length"] for line in lines] == [100, 5000]
    assert set(lines[0]) == {"pred", "answers", "all_classes", "length"}
    assert "\n" not in json.loads((folder / "chain-2" / "samsum.jsonl").read_text("utf-8"))["pred"][1:]

    def refuse(*_):
        raise AssertionError("everything was answered")

    monkeypatch.setattr(answering, "prefill", refuse)
    assert suite.run(options, loaded)["results"] == record["results"]
    pytest.importorskip("matplotlib")
    png, html = suite.write_page(record, tmp_path, "page")
    assert png.read_bytes().startswith(b"\x89PNG")
    page = html.read_text(encoding="utf-8")
    assert "LongBench-E: tiny" in page
    assert page.count("<tr>") == 1 + len(record["results"])


def test_a_context_within_the_window_is_full_precision(loaded, tmp_path):
    write(tmp_path, "lcc", row("lcc", context="x = 1\n", answers=["y"]))
    options = KVOptions(suite="longbench", data_dir=str(tmp_path), bits=(2.0,), out=str(tmp_path / "out"))
    full, packed = suite.run(options, loaded)["results"]
    assert (packed["packed"], packed["same"], packed["score"]) == (0, 1, full["score"])


def test_an_answer_may_have_to_begin(loaded):
    ids = list(range(40))

    def say(ends, least):
        config = loaded.model.config
        cache = answering.prefill(loaded.model, ids[:30], transformers.DynamicCache(config=config))
        return answering.answer(loaded.model, ids[30:], cache, 3, ends, least)

    first = say(frozenset(), 0)[0]
    assert say(frozenset({first}), 0) == []
    begun = say(frozenset({first}), 1)
    assert begun
    assert begun[0] != first


def test_samples_are_spread_over_the_file():
    assert suite._spread(list(range(10)), 3) == [0, 3, 6]
    assert suite._spread([1, 2], 5) == [1, 2]
    assert suite._spread([1, 2], None) == [1, 2]


def test_lengths_must_be_one_and_packed(loaded, tmp_path):
    folder = write(tmp_path, "lcc", row("lcc"))
    for lengths, message in (((1000, 2000), "must be one number"), ((100,), r"must be above the \d+ tokens")):
        options = KVOptions(suite="longbench", data_dir=folder, lengths=lengths, out=str(tmp_path))
        with pytest.raises(BenchError, match=message):
            suite.run(options, loaded)


def test_a_model_that_is_not_there(tmp_path):
    folder = write(tmp_path, "hotpotqa", row())
    given = ["bench", "kv", "--suite", "longbench", "--data-dir", folder, "--out", str(tmp_path)]
    result = CliRunner().invoke(cli, [*given, "--model-id", "Qwen/Qwen3-0.6B", "--local-files-only"])
    assert result.exit_code == 2
    assert "hf download Qwen/Qwen3-0.6B" in result.output
