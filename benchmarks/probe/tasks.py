"""Training sequences and test samples: Wikipedia text, and retrieval tasks generated inside it or inside noise."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from weaving import ANSWER, LANGUAGE, SILENT, Part, Weaver
from wording import (
    CHAIN,
    CHAIN_INTRODUCTION,
    INTRODUCTIONS,
    NEEDLES,
    PASS_KEY,
    SEVERAL,
    Encoder,
    Needle,
    Wordsmith,
    listed,
)

__all__ = ["ANSWER", "LANGUAGE", "SILENT", "TASKS", "Mixture", "Sample", "TaskWriter"]

TASKS = ("single", "multi-key", "uuid", "multi-value", "tracking")


@dataclass(frozen=True)
class Mixture:
    """What sequences a batch is made of.

    Attributes
    ----------
    lengths, shares : tuple
        Lengths in tokens, and how often a batch has each.
    plain, repeated : float
        Share of sequences of plain text, and of text with repeated passages; the rest are retrieval tasks.
    several, tracking : float
        Share among retrieval tasks of those with several values, and of variable tracking.
    """

    lengths: tuple[int, ...] = (2048,)
    shares: tuple[float, ...] = (1.0,)
    plain: float = 0.4
    repeated: float = 0.05
    several: float = 0.15
    tracking: float = 0.15


@dataclass(frozen=True)
class Sample:
    """One test: `tokens` int64 [length], the answer at `start:stop`, the needle asked for at `depth`."""

    tokens: np.ndarray
    start: int
    stop: int
    depth: float


class TaskWriter(Weaver):
    """Writes sequences of tokens.

    Parameters
    ----------
    encoder : Encoder
        Tokens of generated text.
    words : sequence of str
        What keys are made of.
    text : np.ndarray
        uint16 [n], the tokens of the text that sequences are cut from.
    seed : int
        Writers with the same seed write the same.
    """

    def __init__(self, encoder: Encoder, words: Sequence[str], text: np.ndarray, seed: int) -> None:
        choice = random.Random(seed)
        super().__init__(encoder, text, choice)
        self.words = Wordsmith(words, choice)

    def reseed(self, seed: int) -> None:
        """Start the stream of chance anew."""
        self.choice.seed(seed)

    # Sequences for training: tokens int64 [length], labels uint8 [length].

    def plain(self, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Text."""
        return self.cut(length), np.full(length, LANGUAGE, np.uint8)

    def repeated(self, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Text with passages, real or random, that come again."""
        tokens, labels = self.plain(length)
        choice, place = self.choice, 0
        while place < length - 48:
            size = choice.choice((8, 16, 24, 32, 64))
            again = place + size + choice.randint(4, max(5, min(length // 3, 800)))
            if again + size > length:
                break
            if choice.random() < 0.6:
                tokens[place : place + size] = choice.choices(range(4, self.size), k=size)
                labels[place : place + size + 1] = SILENT
            tokens[again : again + size] = tokens[place : place + size]
            labels[again : again + 2] = SILENT
            labels[again + 2 : again + size] = ANSWER
            labels[again + size : again + size + 1] = SILENT
            place = again + size + choice.randint(0, 64)
        return tokens, labels

    def needles(self, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Needles with one value each: one, many, nothing but needles, asked at the end or on the way."""
        choice, words = self.choice, self.words
        share = 0.35 if length <= 1024 else 0.2
        room = questions = int(length * share)
        key_kind = choice.choices(
            ("word", "pair", "spaced", "name", "digits", "hex", "uuid"),
            (0.2, 0.27, 0.07, 0.13, 0.1, 0.08, 0.15),
        )[0]
        value_kind = choice.choices(("six", "digits", "uuid", "hex", "word"), (0.5, 0.2, 0.12, 0.08, 0.1))[0]
        if key_kind == "uuid" and choice.random() < 0.6:
            value_kind = "uuid"
        needle = choice.choices(NEEDLES, [n.weight for n in NEEDLES])[0]
        kind = choice.choices(("single", "many", "dense", "only"), (0.22, 0.65, 0.06, 0.07))[0]
        if kind == "only" and length <= 9000:  # RULER's multikey_3 has no haystack
            room, questions = length, max(256, int(length * 0.2))
            if choice.random() < 0.5:
                key_kind, value_kind, needle = "uuid", "uuid", NEEDLES[2]
        elif kind in ("dense", "only"):
            kind, room = "dense", length // 2
        noun = words.noun(value_kind, varied=value_kind != "uuid")
        most = max(2, room // 18)
        count = {"single": 1, "dense": most, "only": most}.get(kind, 0)
        if count == 0 and choice.random() < 0.5:
            count = choice.randint(2, min(most, 64))
        elif count == 0:
            count = int(math.exp(choice.uniform(math.log(2), math.log(min(most, 128)))))
        if kind == "single" and choice.random() < 0.3:
            needle, value_kind = PASS_KEY, "six"
        introduction = (
            self.encode(choice.choice(INTRODUCTIONS).format(noun=noun)) if choice.random() < 0.25 else []
        )
        lead, used = "\n" if kind == "only" else " ", 0
        hidden: list[tuple[str, str, list[int]]] = []
        for key in words.keys(count, key_kind, alike=choice.random() < 0.25):
            value = words.value(value_kind)
            tokens = self.encode(lead + needle.statement.format(key=key, value=value, noun=noun))
            if hidden and used + len(tokens) + (questions if kind == "only" else 0) > room:
                break
            used += len(tokens)
            hidden.append((key, value, tokens))
        order = choice.sample(range(len(hidden)), len(hidden))
        if choice.random() < 0.3:
            order = order[: choice.randint(1, len(order))]
        early = choice.choice((0.0, 0.0, 0.5, 0.8)) if kind != "only" else 0.0
        asked: list[tuple[int, list[int], list[int]]] = []
        taken = 0
        for index in order:
            key, value, _ = hidden[index]
            question = self._question(needle, key=key, noun=noun)
            answer = self.encode(f" {value}.")
            if asked and taken + len(question) + len(answer) > questions:
                break
            taken += len(question) + len(answer)
            asked.append((index, question, answer))
        size = length - used - taken - len(introduction) - 1
        if size < 0:
            return self.plain(length)
        haystack, label = self.haystack(0 if kind == "only" and choice.random() < 0.7 else size)
        end = len(haystack)
        places = self.places(haystack, len(hidden))
        parts = [Part(-1, introduction)] if introduction else []
        parts += [Part(place, tokens) for place, (_, _, tokens) in zip(places, hidden, strict=True)]
        for number, (index, question, answer) in enumerate(asked):
            late = number == 0 or choice.random() >= early
            parts.append(Part(end if late else choice.randint(places[index], end), question, answer))
        return self.weave(length, haystack, label, parts)

    def several(self, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Keys with several values, all asked for at once in their order; or one value for each of several keys."""
        choice, words = self.choice, self.words
        one_each = choice.random() < 0.3
        value_kind = choice.choices(("six", "digits", "word", "uuid"), (0.35, 0.45, 0.1, 0.1))[0]
        key_kind = choice.choice(("word", "pair", "pair", "name", "digits"))
        noun, room = words.noun(value_kind), int(length * (0.35 if length <= 1024 else 0.2))
        hidden: list[tuple[str, str, list[int]]] = []
        used = 0
        count = choice.randint(2, 8) if one_each else choice.randint(1, 6)
        for key in words.keys(count, key_kind, alike=choice.random() < 0.2):
            for _ in range(1 if one_each else choice.choice((1, 2, 3, 4, 4))):
                value = words.value(value_kind)
                tokens = self.encode(" " + SEVERAL.statement.format(key=key, value=value, noun=noun))
                if hidden and used + len(tokens) > room:
                    break
                used += len(tokens)
                hidden.append((key, value, tokens))
        introduction = self.encode(INTRODUCTIONS[1].format(noun=noun)) if choice.random() < 0.4 else []
        left = 130 if length <= 1024 else 400
        size = length - used - len(introduction) - left
        if size < 16:
            return self.plain(length)
        choice.shuffle(hidden)
        haystack, label = self.haystack(size)
        places = sorted(self.places(haystack, len(hidden)))
        parts = [Part(-1, introduction)] if introduction else []
        parts += [Part(place, tokens) for place, (_, _, tokens) in zip(places, hidden, strict=True)]
        keys = list(dict.fromkeys(key for key, _, _ in hidden))
        choice.shuffle(keys)
        for number in range(6):
            if one_each:
                wanted = choice.sample(keys, min(len(keys), choice.randint(2, 4)))
            elif number < len(keys):
                wanted = [keys[number]]
            else:
                break
            values = [value for name in wanted for key, value, _ in hidden if key == name]
            question = self._question(SEVERAL, key=listed(wanted), noun=noun)
            answer = self.encode(f" {listed(values)}.")
            if number and len(question) + len(answer) > left:
                break
            left -= len(question) + len(answer)
            parts.append(Part(size, question, answer))
        return self.weave(length, haystack, label, parts)

    def tracking(self, length: int) -> tuple[np.ndarray, np.ndarray]:
        """RULER's variable tracking: VAR A = 12345, VAR B = VAR A, and so on."""
        choice = self.choice
        room = questions = int(length * (0.35 if length <= 1024 else 0.2))
        style = choice.choice((" {}.", " {}.", "\n{}\n", " {} "))
        chains: list[tuple[str, list[str], list[list[int]]]] = []
        used = 0
        for _ in range(choice.choice((1, 1, 1, 2, 3) if length <= 1024 else (1, 1, 1, 2, 3, 5))):
            names = [self.words.variable() for _ in range(choice.choice((2, 3, 4, 5, 5)))]
            value = self.words.digits(5)
            steps = [self.encode(style.format(s)) for s in _chain(names, value)]
            if chains and used + sum(map(len, steps)) > room:
                break
            used += sum(map(len, steps))
            chains.append((value, names, steps))
        introduction = self.encode(CHAIN_INTRODUCTION) if choice.random() < 0.5 else []
        asked: list[tuple[list[int], list[int]]] = []
        taken = 0
        for value, names, _ in choice.sample(chains, len(chains)):
            form = choice.choice((0, 0, 1, 2))
            question = self._question(CHAIN, form, value=value, noun=str(len(names)))
            answer = self.encode(f" {' '.join(names)}.")
            if asked and taken + len(question) + len(answer) > questions:
                break
            taken += len(question) + len(answer)
            asked.append((question, answer))
        size = length - used - len(introduction) - taken - 1
        if size < 16:
            return self.plain(length)
        haystack, label = self.haystack(size)
        parts = [Part(-1, introduction)] if introduction else []
        for _, _, steps in chains:
            places = sorted(self.places(haystack, len(steps)))
            parts += [Part(place, step) for place, step in zip(places, steps, strict=True)]
        parts += [Part(size, question, answer) for question, answer in asked]
        return self.weave(length, haystack, label, parts)

    def batch(self, tokens: int, length: int, mixture: Mixture) -> tuple[np.ndarray, np.ndarray]:
        """`tokens` / `length` sequences of `length` + 1 tokens.

        Returns
        -------
        tokens : np.ndarray
            int64 [batch, length + 1].
        labels : np.ndarray
            uint8 [batch, length + 1], one of `SILENT`, `LANGUAGE`, `ANSWER` for each token.
        """
        rows = []
        for _ in range(max(1, tokens // length)):
            chance = self.choice.random()
            if chance < mixture.plain:
                write = self.plain
            elif chance < mixture.plain + mixture.repeated:
                write = self.repeated
            else:
                chance = self.choice.random()
                if chance < mixture.tracking:
                    write = self.tracking
                else:
                    write = self.several if chance < mixture.tracking + mixture.several else self.needles
            rows.append(write(length + 1))
        return np.stack([row[0] for row in rows]), np.stack([row[1] for row in rows])

    def sample(self, task: str, length: int, depth: float) -> Sample:
        """One test of exactly `length` tokens, question and answer included.

        Parameters
        ----------
        task : str
            `single`: one needle of two words and six digits; `multi-key`: 16 of them; `uuid`: four needles whose keys
            and values are UUIDs; `multi-value`: four values of one key and three other keys; `tracking`: one chain
            of five variables.
        length : int
            Tokens.
        depth : float
            Where in the haystack, from 0 to 1, the needle asked for lies; of several, one of them.

        Raises
        ------
        ValueError
            If `task` is unknown or `length` is too short for it.
        """
        words, linked = self.words, 0
        if task == "tracking":
            names, value = [words.variable() for _ in range(5)], words.digits(5)
            hidden = [self.encode(f" {step}.") for step in _chain(names, value)]
            question, answer = self._question(CHAIN, 0, value=value, noun="5"), " ".join(names)
            linked = 5
        elif task == "multi-value":
            keys = words.keys(4, "pair")
            pairs = [(key, words.digits(7)) for key in (keys[0], keys[0], keys[0], *keys)]
            hidden = [self._statement(SEVERAL, key, value, "number") for key, value in pairs]
            question = self._question(SEVERAL, 0, key=keys[0], noun="number")
            answer = listed([value for _, value in pairs[:4]])
            linked = 4
        elif task in TASKS:
            count, kinds = {"single": (1, ("pair", "six")), "multi-key": (16, ("pair", "six"))}.get(
                task, (4, ("uuid", "uuid"))
            )
            noun = words.noun(kinds[1])
            pairs = [(key, words.value(kinds[1])) for key in words.keys(count, kinds[0])]
            hidden = [self._statement(NEEDLES[0], key, value, noun) for key, value in pairs]
            question = self._question(NEEDLES[0], 0, key=pairs[0][0], noun=noun)
            answer = pairs[0][1]
        else:
            raise ValueError(f"task must be one of {', '.join(TASKS)}, got {task!r}")
        said = self.encode(f" {answer}.")
        size = length - sum(map(len, hidden)) - len(question) - len(said)
        if size < 16:
            raise ValueError(f"length must leave room for the haystack of {task}, got {length}")
        haystack = self.cut(size)
        places = [self.snapped(haystack, int(depth * size))]
        places += [self.snapped(haystack, self.choice.randint(0, size)) for _ in hidden[1:]]
        places[:linked] = sorted(places[:linked])
        parts = [Part(place, tokens) for place, tokens in zip(places, hidden, strict=True)]
        tokens, _ = self.weave(length, haystack, SILENT, [*parts, Part(size, question, said)], ended=False)
        return Sample(tokens, length - len(said), length - 1, depth)  # the closing full stop is not asked for

    def _statement(self, needle: Needle, key: str, value: str, noun: str) -> list[int]:
        return self.encode(" " + needle.statement.format(key=key, value=value, noun=noun))

    def _question(self, needle: Needle, form: int | None = None, **fields: str) -> list[int]:
        """A question and the opening of its answer, put one of several ways; way 0 is RULER's."""
        question, opening = needle.question.format(**fields), needle.opening.format(**fields)
        if form is None:
            form = self.choice.choices(range(5), (0.4, 0.2, 0.15, 0.15, 0.1))[0]
        if needle is CHAIN:
            if form and self.choice.random() < 0.5:
                opening = opening.replace("assigned", "assgined")  # so spelled in RULER
            ways = (f"\nQuestion: {question} Answer: {opening}", f"\nQuestion: {question}\nAnswer: {opening}")
            return self.encode((*ways, f"\n{question} {opening}")[form])
        ways = (
            f"\n{question} {opening}",
            f"\nQuestion: {question}\nAnswer: {opening}",
            f"\n{question}\n{opening}",
        )
        return self.encode((*ways, f"\nQuestion: {question}\nAnswer:", f" {opening}")[form])


def _chain(names: Sequence[str], value: str) -> list[str]:
    """The assignments of one chain."""
    sources = [value, *(f"VAR {name}" for name in names[:-1])]
    return [
        CHAIN.statement.format(key=name, value=source) for name, source in zip(names, sources, strict=True)
    ]
