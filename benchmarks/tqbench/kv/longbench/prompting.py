"""Prompts as LongBench's `pred.py` makes them: filled in, cut in the middle, put into the chat template."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .sources import Example
from .tasks import Task

__all__ = ["Prompt", "make_prompt"]


@dataclass(frozen=True)
class Prompt:
    """Tokens put into the cache, tokens asked afterwards, and whether the middle was cut out."""

    context: list[int]
    question: list[int]
    cut: bool


def make_prompt(task: Task, example: Example, tokenizer: Any, max_length: int, chat: bool = True) -> Prompt:
    """The prompt of an example.

    What the task's prompt says after its context is asked in a forward pass of its own, so that the first token of an
    answer, too, comes from the cache that holds the context. The tokens are those of the whole prompt.

    Parameters
    ----------
    task, example : Task, Example
        What is asked.
    tokenizer : PreTrainedTokenizer
        Of the model asked.
    max_length : int
        Tokens of which more than these are cut to the first and last `max_length // 2`, before the chat template.
    chat : bool
        Use the tokenizer's chat template, when it has one and the task is not asked without. Models that can think
        are told not to.
    """
    values = {"context": example.context, "input": example.input}
    text = task.prompt.format(**values)
    tail = task.prompt.partition("{context}")[2].format(**values)
    ids = tokenizer(text)["input_ids"]
    cut = len(ids) > max_length
    if cut:
        half = max_length // 2
        first, last = ids[:half], ids[len(ids) - half :]
        text = "".join(tokenizer.decode(part, skip_special_tokens=True) for part in (first, last))
    if chat and task.chat and getattr(tokenizer, "chat_template", None):
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": text}],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=False,
        )
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]  # the template writes them
    elif cut:
        ids = tokenizer(text)["input_ids"]
    place = text.rfind(tail.strip())
    asked = text[place:] if place >= 0 else tail
    count = len(tokenizer(asked, add_special_tokens=False)["input_ids"])
    start = len(ids) - max(1, min(count, len(ids) // 2))
    return Prompt(list(ids[:start]), list(ids[start:]), cut)
