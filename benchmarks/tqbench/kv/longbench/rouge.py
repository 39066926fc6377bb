"""ROUGE-L as LongBench computes it: that of the package `rouge` 1.0.1, which counts words once."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["rouge_l"]

_DEEPEST = 990
"""Steps back through a table beyond which the package, which recurses, meets Python's limit; LongBench then says 0."""


def rouge_l(prediction: str, answer: str) -> float:
    """F of precision and recall of the words in common subsequences, from 0 to 1.

    A word counts once however often it is said, and in common are the words of the longest common subsequence of any
    sentence of the answer with any of the prediction. Sentences end at a full stop.

    Parameters
    ----------
    prediction, answer : str
        Words apart by blanks; 0 when either has no sentence, or two sentences are too long for the package.
    """
    said, true = _sentences(prediction), _sentences(answer)
    if not said or not true:
        return 0.0
    common: set[str] = set()
    for sentence in true:
        for other in said:
            shared = _subsequence(sentence, other)
            if shared is None:
                return 0.0
            common.update(shared)
    precision = len(common) / len({word for sentence in said for word in sentence})
    recall = len(common) / len({word for sentence in true for word in sentence})
    return 2.0 * ((precision * recall) / (precision + recall + 1e-8))


def _sentences(text: str) -> list[list[str]]:
    """Words of every sentence; one of blanks alone has the empty word, as in the package."""
    return [" ".join(part.split()).split(" ") for part in text.split(".") if part]


def _subsequence(x: Sequence[str], y: Sequence[str]) -> list[str] | None:
    """Words of the longest common subsequence that the package finds; None when it is too many steps away."""
    table = [[0] * (len(y) + 1)]
    for word in x:
        above, row = table[-1], [0]
        for column, other in enumerate(y):
            row.append(above[column] + 1 if word == other else max(above[column + 1], row[column]))
        table.append(row)
    i, j, steps, shared = len(x), len(y), 0, []
    while i and j:
        if x[i - 1] == y[j - 1]:
            i, j = i - 1, j - 1
            shared.append(x[i])
        elif table[i - 1][j] > table[i][j - 1]:
            i -= 1
        else:
            j -= 1
        steps += 1
        if steps > _DEEPEST:
            return None
    return shared
