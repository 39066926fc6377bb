"""Haystacks: text or noise, with parts put into it."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
from wording import NOISE, Encoder

__all__ = ["ANSWER", "END", "LANGUAGE", "SILENT", "Part", "Weaver"]

SILENT, LANGUAGE, ANSWER = 0, 1, 2
"""Labels of tokens: no loss, language modelling, answer of a task."""
END = 0
"""The end-of-text token."""


@dataclass
class Part:
    """Tokens put into a haystack at a position; `answer` follows them and is what the model must say."""

    position: int
    tokens: list[int]
    answer: list[int] | None = None


class Weaver:
    """Cuts haystacks from a text and puts parts into them.

    Parameters
    ----------
    encoder : Encoder
        Tokens of generated text.
    text : np.ndarray
        uint16 [n], the tokens of the text.
    choice : random.Random
        The source of chance.
    """

    def __init__(self, encoder: Encoder, text: np.ndarray, choice: random.Random) -> None:
        self.encode, self.text, self.choice = encoder, text, choice
        tokenizer = encoder.tokenizer
        self.size = tokenizer.get_vocab_size()
        spelled = [tokenizer.decode([index]) for index in range(self.size)]
        self._is_stop = np.array([s == "." for s in spelled])
        self._is_line = np.array([s.endswith("\n") for s in spelled])
        (self._stop,), (self._line,) = encoder("."), encoder("\n")
        joined = encoder(".\n")
        self._stop_line = joined[0] if len(joined) == 1 else None
        self._noises = [np.array(encoder((NOISE + end) * 4), np.int64) for end in ("\n", " ")]

    def cut(self, length: int) -> np.ndarray:
        """`length` tokens of the text, int64, from a random place."""
        start = self.choice.randrange(len(self.text) - length)
        return self.text[start : start + length].astype(np.int64)

    def haystack(self, size: int) -> tuple[np.ndarray, int]:
        """`size` tokens of text, or now and then of noise, and their label."""
        if self.choice.random() >= 0.08:
            return self.cut(size), LANGUAGE
        noise = self.choice.choice(self._noises)
        return np.tile(noise, size // len(noise) + 1)[:size], SILENT

    def snapped(self, haystack: np.ndarray, place: int) -> int:
        """The end of the first sentence that ends at `place` or later."""
        stops = np.flatnonzero(self._is_stop[haystack[place : place + 400]])
        return place + int(stops[0]) + 1 if len(stops) else place

    def places(self, haystack: np.ndarray, count: int) -> list[int]:
        """Random places: mostly ends of sentences, some ends of lines, some anywhere."""
        size, choice, found = len(haystack), self.choice, []
        stops = np.flatnonzero(self._is_stop[haystack]) + 1
        lines = np.flatnonzero(self._is_line[haystack]) + 1
        for _ in range(count):
            place, kind = choice.randint(0, size), choice.random()
            ends = stops if kind < 0.6 else lines if kind < 0.8 else ()
            if len(ends):
                place = int(ends[min(int(np.searchsorted(ends, place)), len(ends) - 1)])
            found.append(place)
        return found

    def weave(
        self, length: int, haystack: np.ndarray, label: int, parts: list[Part], ended: bool = True
    ) -> tuple[np.ndarray, np.ndarray]:
        """Parts put into the haystack, lines joined as the tokenizer joins them, and text in front up to `length`."""
        tokens: list[np.ndarray | list[int]] = []
        labels: list[np.ndarray] = []
        last, place, open_to_join = -1, 0, False

        def put(new: np.ndarray | list[int], kind: int) -> None:
            nonlocal last
            if len(new):
                tokens.append(new)
                labels.append(np.full(len(new), kind, np.uint8))
                last = int(new[-1])

        ordered = sorted(parts, key=lambda part: part.position)
        for number, part in enumerate(ordered):
            if part.position > place:
                put(haystack[place : part.position], label)
                place, open_to_join = part.position, True
            new = part.tokens
            if open_to_join and new[0] == self._line:
                if self._is_line[last]:
                    new = new[1:]
                elif last == self._stop and self._stop_line is not None:
                    tokens[-1] = np.array([*tokens[-1][:-1], self._stop_line], np.int64)
                    new = new[1:]
            put(new, SILENT)
            open_to_join = part.answer is None
            if part.answer is not None:
                put([*part.answer, END] if ended and number == len(ordered) - 1 else part.answer, ANSWER)
        put(haystack[place:], label)
        woven, marks = np.concatenate(tokens).astype(np.int64), np.concatenate(labels)
        missing = length - len(woven)
        if missing > 0:
            woven = np.concatenate([self.cut(missing), woven])
            marks = np.concatenate([np.full(missing, SILENT, np.uint8), marks])
        return woven[-length:], marks[-length:]
