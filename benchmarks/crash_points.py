"""Index files after crashes: processes killed at every call, and disks that lose what was not synced, as a JSON record.

python benchmarks/crash_points.py --out benchmarks/results
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tqbench.crashes import SCRIPTS, Script, check_kill, kill_points, power_losses
from tqbench.progress import track
from tqbench.records import new_record, write_record

SHORT_WRITE = 97  # bytes that a write takes at most, in the run with short writes
RECOVERY_STEPS = 3


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--every", type=int, default=1, help="look at one point in so many")
    parser.add_argument(
        "--second", type=int, default=20, help="crashes of each script whose recovery crashes too"
    )
    parser.add_argument("--out", help="folder of the record")
    parser.add_argument("--name", default="crash-points")
    return parser.parse_args()


def killed(script: Script, folder: Path, every: int, wrong: list[str]) -> dict[str, int]:
    """Count the points at which a child was killed, by kind."""
    states = script.states(folder / "expected")
    (folder / "short").mkdir()
    points = [*kill_points(script, folder), *kill_points(script, folder / "short", SHORT_WRITE)][::every]
    counts: Counter[str] = Counter()
    for number, point in enumerate(track(points, f"{script.name}: killed")):
        kind = "short writes" if point.most == SHORT_WRITE else "torn" if point.kept else "before a call"
        counts[kind] += 1
        found = check_kill(script, states, point, folder / str(number))
        if found:
            wrong.append(f"{script.name}: {found}")
    return dict(counts)


def lost(script: Script, folder: Path, options: argparse.Namespace, wrong: list[str]) -> dict[str, int]:
    """Count the losses of power, and those during the recovery from one."""
    counts: Counter[str] = Counter()
    torn: list[bytes] = []
    (folder / "first").mkdir()
    for loss, files, found in power_losses(script, folder / "first", every=options.every):
        counts[f"{loss.data}, names {loss.names}"] += 1
        index = files.get(str(folder / "first" / "index.tqann"))
        if index and loss.data != "all":
            torn.append(index)
        if found:
            wrong.append(f"{script.name}: {loss}: {found}")
    recovery = Script("recovery", RECOVERY_STEPS, seed=script.seed + 100)
    for number, start in enumerate(random.Random(script.seed).sample(torn, min(options.second, len(torn)))):
        second = folder / f"second-{number}"
        second.mkdir()
        for loss, _, found in power_losses(recovery, second, start, options.every):
            counts["during recovery"] += 1
            if found:
                wrong.append(f"{script.name}: recovery {number}: {loss}: {found}")
    return dict(counts)


def main() -> int:
    options = parse()
    settings = {"every": options.every, "short_write": SHORT_WRITE, "recoveries": options.second}
    record = new_record("crashes", settings=settings)  # now, so that the commit is the one that runs
    results: list[dict[str, Any]] = []
    wrong: list[str] = []
    started = time.perf_counter()
    for script in SCRIPTS:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            for part in ("kill", "power"):
                (folder / part).mkdir()
            kills = killed(script, folder / "kill", options.every, wrong)
            losses = lost(script, folder / "power", options, wrong)
        row = {"script": script.name, "promises": script.steps, "killed": kills, "power_lost": losses}
        results.append(row | {"points": sum(kills.values()) + sum(losses.values())})
        print(f"{script.name}: {sum(kills.values())} kills, {sum(losses.values())} losses of power")
    points = sum(row["points"] for row in results)
    print(f"{points} crashes, {len(wrong)} with a wrong file", *wrong[:20], sep="\n")
    if options.out:
        record |= {"results": results, "points": points, "wrong": wrong}
        record["seconds"] = round(time.perf_counter() - started, 1)
        print(write_record(record, options.out, options.name))
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
