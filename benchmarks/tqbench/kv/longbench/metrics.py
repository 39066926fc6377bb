"""LongBench's metrics as its `metrics.py` and `eval.py` define them, quirks included: scores from 0 to 1."""

from __future__ import annotations

import difflib
import importlib.util
import re
import string
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any

from ...errors import BenchError
from .rouge import rouge_l
from .tasks import CHINESE_PUNCTUATION, Task

__all__ = ["METRICS", "PARAGRAPH", "check_packages", "score"]

PARAGRAPH = {"retrieval": re.compile(r"Paragraph (\d+)"), "retrieval_zh": re.compile(r"段落(\d+)")}
"""What the answer of a retrieval task looks like."""
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NUMBER = re.compile(r"\d+")
_DROP = str.maketrans("", "", string.punctuation)
_DROP_ZH = str.maketrans("", "", string.punctuation + CHINESE_PUNCTUATION)


def score(task: Task, prediction: str, answers: Sequence[str], classes: Sequence[str] = ()) -> float:
    """The best score of a prediction over the true answers.

    Parameters
    ----------
    task : Task
        Its metric and its rule on lines are applied.
    prediction : str
        What was said, as it was said.
    answers : sequence of str
        All true answers.
    classes : sequence of str
        All classes of a classification task.
    """
    if task.first_line:
        prediction = prediction.lstrip("\n").split("\n")[0]
    if task.metric == "classification":
        return max((_classification(prediction, answer, classes) for answer in answers), default=0.0)
    metric = METRICS[task.metric]
    return max((metric(prediction, answer) for answer in answers), default=0.0)


def check_packages(tasks: Iterable[Task]) -> None:
    """Raise BenchError that names a package which the metrics of `tasks` need and which is not installed."""
    for task in tasks:
        for name in task.packages:
            if importlib.util.find_spec(name) is None:
                raise BenchError(
                    f"the metric of {task.name} needs {name}, which is not installed: pip install {name}"
                )


def _qa_f1(prediction: str, answer: str) -> float:
    """F1 of words, without case, punctuation and articles."""

    def words(text: str) -> list[str]:
        return _ARTICLES.sub(" ", text.lower().translate(_DROP)).split()

    return _f1(words(prediction), words(answer))


def _qa_f1_zh(prediction: str, answer: str) -> float:
    """F1 of jieba's words, without case, punctuation and blanks."""

    def words(text: str) -> list[str]:
        cleaned = ("".join(word.lower().translate(_DROP_ZH).split()) for word in _jieba().cut(text))
        return [word for word in cleaned if word]

    return _f1(words(prediction), words(answer))


def _f1(said: Sequence[str], true: Sequence[str]) -> float:
    same = (Counter(said) & Counter(true)).total()
    if not same:
        return 0.0
    precision, recall = same / len(said), same / len(true)
    return 2 * precision * recall / (precision + recall)


def _rouge_l_zh(prediction: str, answer: str) -> float:
    """ROUGE-L (F) of jieba's words."""
    cut = _jieba().cut
    return rouge_l(" ".join(cut(prediction)), " ".join(cut(answer)))


def _classification(prediction: str, answer: str, classes: Sequence[str]) -> float:
    """1 over the number of classes named, when the right one is among them."""
    named = [name for name in classes if name in prediction]
    place = 0
    while place < len(named):
        if named[place] in answer and named[place] != answer:
            named.remove(named[place])
        place += 1  # also after a removal: upstream removes from the list it walks, and so passes over one
    return 1 / len(named) if answer in named else 0.0


def _share(numbers: Sequence[str], right: str) -> float:
    return numbers.count(right) / len(numbers) if numbers else 0.0


def _count(prediction: str, answer: str) -> float:
    """Share of the numbers said that are right."""
    return _share(_NUMBER.findall(prediction), str(answer))


def _retrieval(prediction: str, answer: str) -> float:
    """Share of the numbers said that are the paragraph's."""
    return _share(_NUMBER.findall(prediction), PARAGRAPH["retrieval"].findall(answer)[0])


def _retrieval_zh(prediction: str, answer: str) -> float:
    return _share(_NUMBER.findall(prediction), PARAGRAPH["retrieval_zh"].findall(answer)[0])


def _code_similarity(prediction: str, answer: str) -> float:
    """Similarity of the first line that is neither comment nor markup, in hundredths.

    This is `fuzz.ratio` of fuzzywuzzy without python-Levenshtein, which upstream installs: difflib's ratio, rounded.
    """
    lines = prediction.lstrip("\n").split("\n")
    line = next((line for line in lines if not any(mark in line for mark in ("`", "#", "//"))), "")
    if line == answer:
        return 1.0
    if not line or not answer:
        return 0.0
    return round(100 * difflib.SequenceMatcher(None, line, answer).ratio()) / 100


METRICS: dict[str, Callable[[str, str], float]] = {
    "qa_f1": _qa_f1,
    "qa_f1_zh": _qa_f1_zh,
    "rouge_l": rouge_l,
    "rouge_l_zh": _rouge_l_zh,
    "count": _count,
    "retrieval": _retrieval,
    "retrieval_zh": _retrieval_zh,
    "code_similarity": _code_similarity,
}
"""Score of a prediction against one true answer, by name; classification needs the classes as well."""


@lru_cache(maxsize=1)
def _jieba() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its use of pkg_resources, and of escapes that Python deprecates
        import jieba
    jieba.setLogLevel("WARNING")
    return jieba
