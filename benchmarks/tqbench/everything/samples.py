"""A miniature of LongBench: examples in its format, written for this package, for runs without its data.

They show that the tasks, prompts and metrics work from end to end. They are not items of LongBench, and a score on them
is not a score on LongBench.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import BenchError

__all__ = ["SAMPLE_TASKS", "write_samples"]

# title, then its passage, in lines
_TEXT = """The lighthouse of Varn
The lighthouse of Varn stands on a rock two miles off the northern coast. It was built in 1871 by the engineer
Ada Holm after three ships were lost in one winter. The lamp was lit with whale oil until 1903, when a steam
engine and a dynamo were carried over the ice. The last keeper, Jonas Brekke, left in 1968, and the light has
been automatic ever since. Visitors may climb the tower in July.

Ada Holm
Ada Holm was an engineer who was born in the port of Lessing in 1836. She studied in the capital and drew plans
for bridges before she turned to lighthouses. Eleven of her towers are still in use. She wrote a manual on
masonry under water, which was reprinted for fifty years, and taught at the naval school until she died in 1902.

Lessing
Lessing is a port at the mouth of the river Orre. Its harbour exports timber, paper and dried fish. The old
customs house is now a museum of navigation with a collection of brass sextants. The town has about nineteen
thousand inhabitants, a theatre from 1888, and a ferry to the islands that leaves twice a day.

The Orre
The Orre is a river of a hundred and forty miles. It rises in the Tolm hills, turns a dozen mills, and reaches
the sea at Lessing. Salmon were thought to be gone from it by 1950, but since the weirs were rebuilt with
ladders they have been seen above the third mill every autumn.

The bakery on Mill Street
The bakery on Mill Street opens at five in the morning. Its owner, Petra Lind, bakes rye bread on Mondays and
Thursdays and a sweet loaf with cardamom on Saturdays. The oven is older than the street: it was moved there
brick by brick when the square was widened. A sack of flour lasts a day and a half.

Moss
Mosses have no roots and take up water through their leaves. A cushion of moss can hold twenty times its own
weight of water, so that a wet forest dries slowly from below. Some mosses live for years without rain and turn
green again within minutes. Gardeners who want them spread buttermilk on stone and wait.

The night train
The night train leaves the capital at ten and reaches the coast at seven. It has four sleeping cars, a car with
seats, and a small kitchen that serves soup until midnight. In winter it waits at the summit for the snow plough
to pass. The conductor wakes every passenger by hand, half an hour before the stop.

Bees in town
A city is a good place for bees. Lime trees flower in June, balconies in every month from April, and nobody
sprays the railway banks. The town hall keeps six hives on its roof and sells the honey in December. Last year
there were ninety jars, and the first was given to the fire brigade.

The clock maker
The clock maker kept three rules. A clock is never moved while it strikes. Oil is put on with a feather and not
with a brush. The price is told before the case is opened. He repaired the clock of the theatre four times and
asked for payment once.

Glass
Window glass was blown as a long bottle, cut along its side, and flattened in an oven. The sheets were never
even, which is why old windows shimmer. Panes were sold by weight, and the thick end was set at the bottom so
that rain would run off it."""
_PASSAGES = {
    title: " ".join(lines.split()) for title, lines in (part.split("\n", 1) for part in _TEXT.split("\n\n"))
}
_QUESTIONS = (
    ("Who built the lighthouse of Varn?", ["Ada Holm"]),
    ("In which port was the engineer of the lighthouse of Varn born?", ["Lessing"]),
)
_KINDS = (
    ("How far is it from the capital to the coast ?", "Distance, linear measure"),
    ("Who repaired the clock of the theatre ?", "Individual"),
    ("What year was the theatre built ?", "Date"),
    ("What town has a museum of navigation ?", "City"),
    ("How many jars of honey were sold ?", "Number of something"),
    ("What is a weir ?", "Definition of something"),
    ("Who keeps the light today ?", "Individual"),
    ("When does the ferry leave ?", "Date"),
    ("What port exports dried fish ?", "City"),
    ("How many mills does the river turn ?", "Number of something"),
    ("How long is the river ?", "Distance, linear measure"),
    ("What is a sextant ?", "Definition of something"),
)
_ASKED = (
    ("Who wrote a manual on masonry ?", "Individual"),
    ("How many hives are on the roof ?", "Number of something"),
)
_CODE = '''class Ledger:
    """Amounts by day and account."""

    def __init__(self, currency):
        self.currency = currency
        self.entries = []

    def add(self, day, account, amount):
        """Append one entry; amounts are whole cents."""
        if not isinstance(amount, int):
            raise TypeError(f"amount must be an int, got {amount!r}")
        self.entries.append((day, account, amount))

    def balance(self, account):
        """Sum of all entries of an account."""
        return sum(amount for _, name, amount in self.entries if name == account)

    def days(self):
        """All days with entries, in order."""
        return sorted({day for day, _, _ in self.entries})

    def accounts(self):
        """All accounts with entries, in order."""
        return sorted({name for _, name, _ in self.entries})

    def report(self):
        """Lines with the balance of every account."""
        lines = []
        for account in self.accounts():
            lines.append(f"{account}: {self.balance(account)} {self.currency}")
'''
_NEXT_LINE = '        return "\\n".join(lines)'
_MORE_CODE = '''
    def total(self):
        """Sum of all entries."""
'''
_LAST_LINE = "        return sum(amount for _, _, amount in self.entries)"


def _numbered(titles: list[str], word: str) -> str:
    return "\n\n".join(f"{word} {number}:\n{_PASSAGES[title]}" for number, title in enumerate(titles, 1))


def _examples() -> dict[str, list[dict[str, Any]]]:
    titles = list(_PASSAGES)
    passages = "\n".join(f"Passage {n}:\n{title}\n{_PASSAGES[title]}" for n, title in enumerate(titles, 1))
    shots = "\n".join(f"Question: {question}\nType: {kind}" for question, kind in _KINDS * 2)
    kinds = sorted({kind for _, kind in _KINDS})
    repeated = ([*titles[:6], *titles[:2]], [*titles[3:], *titles[3:5]])
    news = (
        (
            titles[:4],
            "Ada Holm of Lessing built the lighthouse of Varn in 1871; it has been automatic since 1968.",
        ),
        (
            titles[4:8],
            "The bakery opens at five, the night train crosses the summit, and the town hall sells its honey.",
        ),
    )
    return {
        "hotpotqa": [{"input": q, "context": passages, "answers": a} for q, a in _QUESTIONS],
        "trec": [
            {"input": f"Question: {q}\nType:", "context": shots, "answers": [kind], "all_classes": kinds}
            for q, kind in _ASKED
        ],
        "multi_news": [
            {"input": "", "context": _numbered(chosen, "Passage"), "answers": [summary]}
            for chosen, summary in news
        ],
        "passage_count": [
            {"input": "", "context": _numbered(chosen, "Paragraph"), "answers": [str(len(set(chosen)))]}
            for chosen in repeated
        ],
        "passage_retrieval_en": [
            {
                "input": "A tower on a rock off the coast, its keepers and its lamp.",
                "context": _numbered([*titles[4:], titles[0]], "Paragraph"),
                "answers": [f"Paragraph {len(titles[4:]) + 1}"],
            },
            {
                "input": "A plant without roots that holds much water.",
                "context": _numbered(titles, "Paragraph"),
                "answers": [f"Paragraph {titles.index('Moss') + 1}"],
            },
        ],
        "lcc": [
            {"input": "", "context": _CODE, "answers": [_NEXT_LINE]},
            {"input": "", "context": f"{_CODE}{_NEXT_LINE}\n{_MORE_CODE}", "answers": [_LAST_LINE]},
        ],
    }


SAMPLE_TASKS = tuple(_examples())


def write_samples(folder: str | Path) -> Path:
    """Write one TASK.jsonl a task into `folder`, with the keys of LongBench, and return the folder.

    Raises
    ------
    BenchError
        When the folder cannot be written.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for task, examples in _examples().items():
            lines = []
            for number, example in enumerate(examples):
                words = len(f"{example['context']} {example['input']}".split())
                row = {"length": words, "dataset": task, "language": "python" if task == "lcc" else "en"}
                row |= {"all_classes": None, "_id": f"sample-{task}-{number}"}
                lines.append(json.dumps(row | example))
            (folder / f"{task}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    except OSError as error:
        raise BenchError(f"cannot write to {folder}: {error.strerror}") from error
    return folder
