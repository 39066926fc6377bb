"""The 21 tasks of LongBench: prompt, length of an answer, metric, and the rules that differ between them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files

__all__ = ["CHINESE_PUNCTUATION", "E_TASKS", "TASKS", "Task"]

_FEW_SHOT = ("trec", "triviaqa", "samsum", "lsht")
_NO_CHAT = (*_FEW_SHOT, "lcc", "repobench-p")


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes
    ----------
    name : str
        As LongBench names it.
    metric : str
        A name of `metrics.METRICS`, or "classification".
    answer_tokens : int
        Most tokens of an answer.
    prompt : str
        With `{context}` and, but for some tasks, `{input}`.
    """

    name: str
    metric: str
    answer_tokens: int
    prompt: str

    @property
    def chat(self) -> bool:
        """Whether the prompt goes through the chat template of a model that has one."""
        return self.name not in _NO_CHAT

    @property
    def first_line(self) -> bool:
        """Whether the first line of an answer alone counts."""
        return self.name in _FEW_SHOT

    @property
    def one_line(self) -> bool:
        """Whether an answer ends with its line, and must have one token at least."""
        return self.name == "samsum"

    @property
    def packages(self) -> tuple[str, ...]:
        """Packages that the metric needs."""
        return ("jieba",) if self.metric in ("qa_f1_zh", "rouge_l_zh") else ()


_DATA = json.loads(files(__package__).joinpath("tasks.json").read_text(encoding="utf-8"))
CHINESE_PUNCTUATION: str = _DATA["chinese_punctuation"]
"""What the metrics of Chinese tasks leave out besides ASCII punctuation."""
TASKS = {name: Task(name, **values) for name, values in _DATA["tasks"].items()}
"""All tasks by name."""
E_TASKS = (
    "qasper", "multifieldqa_en", "hotpotqa", "2wikimqa", "gov_report", "multi_news", "trec", "triviaqa", "samsum",
    "passage_count", "passage_retrieval_en", "lcc", "repobench-p",
)  # fmt: skip
"""Tasks of LongBench-E."""
