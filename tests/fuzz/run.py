"""Coverage-guided fuzzing of the reader of index files: whatever the bytes are, an index or an IndexFileError.

    pip install atheris
    python tests/fuzz/run.py --minutes 30
    python tests/fuzz/run.py --seeds   # writes the seeds of the corpus again, and no more

Every input is read as it is, and once more with its checksums made right and sometimes an odd value in it, so that what
lies behind the checksums is reached. CONTRIBUTING.md tells how to run it with a core that is compiled for the address
and undefined-behaviour sanitizers.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"

try:
    import atheris
except ImportError:
    sys.exit("fuzzing needs atheris, for Linux and Python 3.11 to 3.13: pip install atheris")

with atheris.instrument_imports(include=["tqann", "tqcore"]):
    from reader import one_input, seeds, variant


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=0, help="0 for no limit")
    parser.add_argument("--corpus", default=str(CORPUS), help="read, and extended by what reaches new code")
    parser.add_argument("--seeds", action="store_true", help="write the seeds to the corpus, and no more")
    parser.add_argument("libfuzzer", nargs="*", help="further options behind --, as -runs=1000")
    options = parser.parse_args()
    if options.seeds:
        for name, data in seeds().items():
            (Path(options.corpus) / f"{name}.tqann").write_bytes(data)
        return
    shared = "/dev/shm" if os.path.isdir("/dev/shm") else None
    path = Path(tempfile.mkdtemp(dir=shared)) / "mapped.tqann"

    def target(data: bytes) -> None:
        one_input(data, path)
        one_input(variant(data), path)

    limits = ["-max_len=16384", "-timeout=30", "-rss_limit_mb=3072", "-malloc_limit_mb=512"]
    limits.append(f"-max_total_time={int(options.minutes * 60)}")
    arguments = [sys.argv[0], *limits, options.corpus, *options.libfuzzer]
    atheris.Setup(arguments, target)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
