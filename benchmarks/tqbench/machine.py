"""What a figure was measured on."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

__all__ = ["available_cores", "command_line", "describe_machine", "package_versions", "source_commit"]

_FLAGS = (
    "sse4_2",
    "avx",
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512bw",
    "avx512vl",
    "avx512vbmi",
)
_FLAGS += ("avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "asimd", "asimddp", "i8mm", "sve", "sve2")
_PACKAGES = ("tqann", "numpy", "faiss-cpu", "turbovec", "rabitqlib", "scikit-learn", "torch", "transformers")


def available_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def describe_machine() -> dict:
    """Processor, cores, instruction sets, memory and operating system."""
    model, flags = _processor()
    return {
        "cpu": model,
        "cores": available_cores(),
        "flags": [flag for flag in _FLAGS if flag in flags],
        "memory_gib": _memory_gib(),
        "os": f"{platform.system()} {platform.release()}",
        "architecture": platform.machine(),
        "python": platform.python_version(),
    }


def _processor() -> tuple[str, set[str]]:
    info = Path("/proc/cpuinfo")
    model, flags = platform.processor() or platform.machine(), set()
    if info.is_file():
        for line in info.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                model = value.strip()
            elif key.strip() in ("flags", "Features"):
                flags = set(value.split())
    elif sys.platform == "darwin":
        found = _output(["sysctl", "-n", "machdep.cpu.brand_string"])
        model = found or model
    return model, flags


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None


def package_versions() -> dict[str, str]:
    """Versions of the packages that matter, where installed."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def source_commit() -> str | None:
    """Commit of the source tree this runs from, with "+changes" when it was edited.

    Outside a tree it is what the environment variable TQ_COMMIT says, or None.
    """
    here = str(Path(__file__).resolve().parent)
    commit = _output(["git", "-C", here, "rev-parse", "--short=12", "HEAD"])
    tracked = _output(["git", "-C", here, "ls-files", "machine.py"])
    if not commit or not tracked:
        return os.environ.get("TQ_COMMIT") or None
    changed = _output(["git", "-C", here, "status", "--porcelain", "--untracked-files=no", ":/"])
    return f"{commit}+changes" if changed else commit


def command_line(argv: list[str] | None = None) -> str:
    """The command as typed, with folders of paths left out."""
    argv = sys.argv if argv is None else argv
    words = [Path(word).name if _is_path(word) else word for word in argv]
    if words and words[0] in ("__main__.py", "main.py"):
        words[0] = "tq"
    return shlex.join(words)


def _is_path(word: str) -> bool:
    return os.sep in word and (Path(word).is_absolute() or Path(word).exists())


def _output(command: list[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
