#!/usr/bin/env bash
# Fuzzes the reader with a core compiled for the address and undefined-behaviour sanitizers, on Linux x86-64:
# tests/fuzz/sanitized.sh [MINUTES] [CORPUS]. A finding ends it with an error and leaves its input in the folder that
# is printed; the corpus is extended in place.
set -euo pipefail

minutes="${1:-30}"
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
corpus="$(cd "${2:-$root/tests/fuzz/corpus}" && pwd)"
work="$(mktemp -d)"
echo "in $work"

python -m pip install --quiet --target "$work/site" numpy atheris
python -m pip install --quiet --target "$work/site" --no-deps --config-settings=build-dir="$work/build" \
  --config-settings=cmake.define.CMAKE_PROJECT_INCLUDE="$root/tests/fuzz/sanitize.cmake" "$root"

cd "$work"
# -S keeps an installed tqann, which is not compiled for the sanitizers, out of the way.
LD_PRELOAD="$work/site/asan_with_fuzzer.so" PYTHONPATH="$work/site" TQ_THREADS=1 OPENBLAS_NUM_THREADS=1 \
  ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
  python -S "$root/tests/fuzz/run.py" --minutes "$minutes" --corpus "$corpus" -- -print_final_stats=1
cd /
rm -rf "$work"
