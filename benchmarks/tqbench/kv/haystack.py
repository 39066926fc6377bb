"""Haystacks and what is hidden in them: prompts of an exact number of tokens for any tokenizer.

The tasks and their wording are RULER's (Hsieh et al., 2024, arXiv 2404.06654).
"""

from __future__ import annotations

import random
import re
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import BenchError

__all__ = ["TASKS", "Haystack", "Prompt", "found_answers", "read_texts"]

TASKS = ("single", "multi-key", "uuid", "multi-value", "tracking")
_NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. "
_SENTENCE = re.compile(r"(?<=[.!?])(?=\s)")
_WORDS = re.findall(
    r"\w+",
    "amber ancient autumn basket bridge bright candle canyon castle cedar circle clever cloud copper coral cotton "
    "crystal desert distant eager eagle early ember engine falcon famous feather forest friendly garden gentle giant "
    "golden harbour harvest hidden hollow honest island ivory jacket jungle kettle ladder lantern little lively "
    "marble meadow mellow mirror modern morning mountain narrow noble ocean olive orange orchard paper pencil "
    "pepper pillow planet polite pocket purple quiet rabbit rapid ribbon river rocket saddle silent silver simple "
    "spider spring stable steady summer sunny tender thunder timber tunnel useful valley velvet violet wagon walnut "
    "water willow window winter wooden yellow",
)
_SHAPES = {
    "number": re.compile(r"\d+"),
    "uuid": re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"),
    "name": re.compile(r"\b[A-Z]{5}\b"),
}
_QUESTION = "What is the special magic {noun} for {key}"
_TOLD = "The special magic {noun} for {key}"
_ALL = "The special magic {noun}s for {key} mentioned in the provided text are"
_INTRODUCTION = (
    "Some special magic {noun}s are hidden within the following text. Make sure to memorize it. I will quiz you about "
    "the {noun}s afterwards.\n"
)
_CHAIN_INTRODUCTION = (
    "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n"
)


@dataclass(frozen=True)
class Prompt:
    """One test.

    Attributes
    ----------
    context, question : list of int
        Tokens put into the cache, and tokens asked afterwards.
    answer : tuple of str
        What must be said, in any order.
    shape : str
        What answers look like: "number", "uuid" or "name".
    answer_tokens : int
        Tokens of the answer.
    places : tuple of int
        Where in the context each needle that the answer needs begins.
    """

    context: list[int]
    question: list[int]
    answer: tuple[str, ...]
    shape: str
    answer_tokens: int
    places: tuple[int, ...]


class Haystack:
    """Writes prompts inside text, or inside RULER's noise.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizer
        That of the model asked.
    text : str or None
        The haystack; None for noise.
    introduced : bool
        Say first what the text is about, as RULER does; models trained on bare text need no introduction.
    """

    def __init__(self, tokenizer: Any, text: str | None = None, introduced: bool = True) -> None:
        self._tokenizer, self._introduced = tokenizer, introduced
        self._sentences = [s for s in _SENTENCE.split(text or " " + _NOISE) if s.strip()]
        self._known: dict[str, list[int]] = {}
        self._first = list(tokenizer("")["input_ids"])  # what the tokenizer begins a sequence with

    def prompt(self, task: str, length: int, depth: float, seed: int) -> Prompt:
        """A prompt whose context and question have exactly `length` tokens together.

        Parameters
        ----------
        task : str
            `single`: one needle of six digits; `multi-key`: 16 of them; `uuid`: four whose keys and values are UUIDs;
            `multi-value`: four values of one key, and three other keys; `tracking`: one chain of five variables.
        length : int
            Tokens.
        depth : float
            Where the needle asked for lies, from 0 to 1; of several, the first drawn, the others anywhere.
        seed : int
            Prompts with the same arguments are the same.

        Raises
        ------
        BenchError
            If the task is unknown or `length` too short for it.
        """
        choice = random.Random(f"{task} {length} {depth:g} {seed}")
        if task == "tracking":
            statements, needed, question, answer, shape = _tracking(choice)
        elif task in TASKS:
            statements, needed, question, answer, shape = _needles(task, choice)
        else:
            raise BenchError(f"tasks must be of {', '.join(TASKS)}, got {task!r}")
        hidden = [self._encode(f" {statement}") for statement in statements]
        asked = self._encode(question)
        front = list(self._first)
        if self._introduced:
            introduction = _CHAIN_INTRODUCTION if task == "tracking" else _INTRODUCTION.format(noun=shape)
            front += self._encode(introduction)
        size = length - sum(map(len, hidden)) - len(asked) - len(front)
        if size < 16:
            least = length - size + 16
            raise BenchError(f"lengths must be at least {least} tokens for {task}, got {length}")
        sentences = self._fill(size, choice.randrange(len(self._sentences)))
        spots = [depth * size, *(choice.uniform(0, size) for _ in hidden[1:])]
        spots[:needed] = sorted(spots[:needed])
        context, places = _woven(front, sentences, spots, hidden)
        said = self._encode(" " + ", ".join(answer))
        return Prompt(context, asked, answer, shape, len(said), tuple(places[:needed]))

    def _encode(self, text: str) -> list[int]:
        found = self._known.get(text)
        if found is None:
            found = self._known[text] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return found

    def _fill(self, size: int, start: int) -> list[list[int]]:
        """Sentences from `start` on, `size` tokens in all; the first loses what is too much."""
        sentences, have, index = [], 0, start
        while have < size:
            tokens = self._encode(self._sentences[index % len(self._sentences)])
            sentences.append(tokens)
            have, index = have + len(tokens), index + 1
        over = have - size
        while over >= len(sentences[0]):
            over -= len(sentences.pop(0))
        sentences[0] = sentences[0][over:]
        return sentences


def _woven(
    front: list[int], sentences: list[list[int]], spots: list[float], hidden: list[list[int]]
) -> tuple[list[int], list[int]]:
    """Tokens with every hidden part at the end of the sentence its spot lies in, and where each begins."""
    context, places, have = list(front), [0] * len(hidden), 0
    waiting = sorted(range(len(hidden)), key=lambda index: spots[index])

    def put(until: float) -> None:
        while waiting and spots[waiting[0]] <= until:
            index = waiting.pop(0)
            places[index] = len(context)
            context.extend(hidden[index])

    put(0)
    for sentence in sentences:
        context += sentence
        have += len(sentence)
        put(have)
    return context, places


def _needles(task: str, choice: random.Random) -> tuple[list[str], int, str, tuple[str, ...], str]:
    """Statements (those asked for first), how many are asked for, question, answer and its shape."""
    noun = "uuid" if task == "uuid" else "number"
    count = {"single": 1, "multi-key": 16, "uuid": 4, "multi-value": 4}[task]
    if task == "uuid":
        keys = [_uuid(choice) for _ in range(count)]
    else:
        keys = list(dict.fromkeys("-".join(choice.sample(_WORDS, 2)) for _ in range(4 * count)))[:count]
    several = task == "multi-value"
    if several:
        keys = [keys[0]] * 3 + keys
    digits = 7 if several else 6
    values = [
        _uuid(choice) if task == "uuid" else str(choice.randrange(10 ** (digits - 1), 10**digits))
        for _ in keys
    ]
    statement = "One of the special magic {noun}s" if several else "The special magic {noun}"
    statements = [
        f"{statement.format(noun=noun)} for {key} is: {value}."
        for key, value in zip(keys, values, strict=True)
    ]
    if several:
        question = f"\nWhat are all the special magic {noun}s for {keys[0]} mentioned in the provided text? "
        question += _ALL.format(noun=noun, key=keys[0])
        return statements, 4, question, tuple(values[:4]), noun
    question = f"\n{_QUESTION.format(noun=noun, key=keys[0])}? {_TOLD.format(noun=noun, key=keys[0])} is:"
    return statements, 1, question, (values[0],), noun


def _tracking(choice: random.Random) -> tuple[list[str], int, str, tuple[str, ...], str]:
    """The same for a chain of five variables."""
    names: list[str] = []
    while len(names) < 5:
        name = "".join(choice.choices("ABCDEFGHIJKLMNOPQRSTUVWXYZ", k=5))
        names += [name] if name not in names else []
    value = str(choice.randrange(10**4, 10**5))
    sources = [value, *(f"VAR {name}" for name in names[:-1])]
    statements = [f"VAR {name} = {source}." for name, source in zip(names, sources, strict=True)]
    question = (
        f"\nQuestion: Find all variables that are assigned the value {value} in the text above. Answer: According to "
        "the chain(s) of variable assignment in the text above, 5 variables are assigned the value "
        f"{value}, they are:"
    )
    return statements, 5, question, tuple(names), "name"


def _uuid(choice: random.Random) -> str:
    return str(uuid.UUID(int=choice.getrandbits(128)))


def found_answers(prompt: Prompt, said: str) -> list[str]:
    """The first things of the answer's shape in `said`, at most as many as the answer has."""
    return _SHAPES[prompt.shape].findall(said)[: len(prompt.answer)]


def read_texts(folder: str | None) -> str | None:
    """All .txt files of a folder, joined; None for no folder.

    Raises
    ------
    BenchError
        If there is no such folder, or no text in it.
    """
    if folder is None:
        return None
    if not Path(folder).is_dir():
        raise BenchError(f"text_dir must be a folder with .txt files, got {folder!r}")
    files = sorted(Path(folder).glob("**/*.txt"))
    text = "\n\n".join(p.read_text(encoding="utf-8", errors="replace") for p in files)
    if not text.strip():
        raise BenchError(f"no text in .txt files of {folder}")
    return text
