"""Needles, questions and answers in words, and their tokens.

The wording of the first three needles and of variable tracking is RULER's (Hsieh et al., 2024, arXiv 2404.06654).
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import Tokenizer

__all__ = ["CHAIN", "NEEDLES", "PASS_KEY", "Encoder", "Needle", "Wordsmith", "listed"]

# The tokenizer's own pattern, for ASCII text.
_PIECES = re.compile(
    r"'(?:[sStTmMdD]|[rR][eE]|[vV][eE]|[lL][lL])|[^\r\nA-Za-z0-9]?[A-Za-z]+|[0-9]| ?[^\sA-Za-z0-9]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class Encoder:
    """Tokens of ASCII text, piece by piece from a table, ten times as fast as the tokenizer on generated text.

    Parameters
    ----------
    tokenizer : Tokenizer
        A tokenizer with the pattern of `tokenizer.PATTERN`.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._known: dict[str, list[int]] = {}

    def __call__(self, text: str) -> list[int]:
        """Token ids of `text`."""
        ids: list[int] = []
        known = self._known
        for piece in _PIECES.findall(text):
            found = known.get(piece)
            if found is None:
                found = known[piece] = self.tokenizer.encode(piece).ids
            ids += found
        return ids


@dataclass(frozen=True)
class Needle:
    """One way to hide a value and to ask for it; fields are formatted with key, value and noun."""

    statement: str
    question: str
    opening: str
    weight: float = 0.0


_ASKED = "What is the special magic {noun} for {key} mentioned in the provided text?"
_TOLD = "The special magic {noun} for {key} mentioned in the provided text is"
NEEDLES = (
    Needle("The special magic {noun} for {key} is: {value}.", "What is the special magic {noun} for {key}?",
           "The special magic {noun} for {key} is:", 0.35),
    Needle("One of the special magic {noun}s for {key} is: {value}.", _ASKED, _TOLD + ":", 0.1),
    Needle("One of the special magic {noun}s for {key} is: {value}.", _ASKED, _TOLD, 0.25),
    Needle("The secret {noun} for {key} is {value}.", "What is the secret {noun} for {key}?",
           "The secret {noun} for {key} is", 0.1),
    Needle("The {noun} of {key} is {value}.", "What is the {noun} of {key}?", "The {noun} of {key} is", 0.1),
    Needle("Remember that {key} has the {noun} {value}.", "Which {noun} does {key} have?", "{key} has the {noun}",
           0.1),
)  # fmt: skip
PASS_KEY = Needle(
    "The pass key is {value}. Remember it. {value} is the pass key.",
    "What is the pass key?",
    "The pass key is",
)
SEVERAL = Needle(
    NEEDLES[1].statement,
    "What are all the special magic {noun}s for {key} mentioned in the provided text?",
    "The special magic {noun}s for {key} mentioned in the provided text are",
)
CHAIN = Needle(
    "VAR {key} = {value}",
    "Find all variables that are assigned the value {value} in the text above.",
    "According to the chain(s) of variable assignment in the text above, {noun} variables are assigned the value "
    "{value}, they are:",
)
INTRODUCTIONS = (
    "A special magic {noun} is hidden within the following text. Make sure to memorize it. I will quiz you about the "
    "{noun} afterwards.\n",
    "Some special magic {noun}s are hidden within the following text. Make sure to memorize it. I will quiz you about "
    "the {noun}s afterwards.\n",
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize it. I will quiz you "
    "about the important information there.\n",
)
CHAIN_INTRODUCTION = (
    "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n"
)
NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_NOUNS = {"six": "number", "digits": "number", "uuid": "uuid", "hex": "code", "word": "word"}


def listed(items: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b, and c`."""
    if len(items) < 3:
        return " and ".join(items)
    return ", ".join(items[:-1]) + ", and " + items[-1]


class Wordsmith:
    """Random keys and values.

    Parameters
    ----------
    words : sequence of str
        Lower-case English words.
    choice : random.Random
        The source of chance.
    """

    def __init__(self, words: Sequence[str], choice: random.Random) -> None:
        self.words, self.choice = list(words), choice

    def hexadecimal(self, count: int) -> str:
        """`count` hexadecimal digits."""
        return f"{self.choice.getrandbits(4 * count):0{count}x}"

    def uuid(self) -> str:
        """128 random bits, written like a UUID."""
        h = self.hexadecimal(32)
        return f"{h[:8]}-{h[8:12]}-{h[12:16]}-{h[16:20]}-{h[20:]}"

    def digits(self, count: int) -> str:
        """A number of `count` digits."""
        return str(self.choice.randrange(10 ** (count - 1), 10**count))

    def variable(self) -> str:
        """Five capital letters."""
        return "".join(self.choice.choices(_LETTERS, k=5))

    def key(self, kind: str, pool: Sequence[str]) -> str:
        """A key: `word`, `pair` (hyphenated), `spaced`, `name`, `digits`, `hex` or `uuid`."""
        word = self.choice.choice
        if kind == "word":
            return word(pool)
        if kind == "pair":
            return f"{word(pool)}-{word(pool)}"
        if kind == "spaced":
            return f"{word(pool)} {word(pool)}"
        if kind == "name":
            first = word(pool).capitalize()
            return f"{first} {word(pool).capitalize()}" if self.choice.random() < 0.5 else first
        if kind == "digits":
            return self.digits(self.choice.choice((4, 5, 6, 6, 7)))
        return self.hexadecimal(8) if kind == "hex" else self.uuid()

    def keys(self, count: int, kind: str, alike: bool = False) -> list[str]:
        """Up to `count` different keys; `alike` ones are made of few words."""
        few = min(len(self.words), max(4, int(count**0.5) + 2))
        pool = self.choice.sample(self.words, few) if alike else self.words
        found: dict[str, None] = {}
        for _ in range(20 * count):
            if len(found) == count:
                break
            found[self.key(kind, pool)] = None
        return list(found)

    def value(self, kind: str) -> str:
        """A value: `six` digits, `digits`, `hex`, `word` or `uuid`."""
        if kind == "six":
            return self.digits(6)
        if kind == "digits":
            return self.digits(self.choice.choice((4, 5, 5, 7, 7, 7, 8, 9)))
        if kind == "word":
            return self.choice.choice(self.words)
        return self.hexadecimal(8) if kind == "hex" else self.uuid()

    def noun(self, kind: str, varied: bool = False) -> str:
        """What values of a kind are called."""
        if varied and kind in ("six", "digits") and self.choice.random() < 0.2:
            return self.choice.choice(("code", "key", "password", "identifier"))
        return _NOUNS[kind]
