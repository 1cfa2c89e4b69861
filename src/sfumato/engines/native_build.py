"""The C++ kernels, compiled for this machine's processor on first use and kept in the user's cache. Never required.

A wheel compiled elsewhere couldn't use what this processor has; the few hundred lines compile in seconds. No compiler,
no place to write or a kernel that doesn't load are a reason, in words, to do without.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import secrets
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from sfumato.errors import SfumatoError
from sfumato.user_cache import cache_folder

SOURCES = Path(__file__).parent / "native"
# No -ffast-math: it would switch the whole process to flushing denormals, and break the rounding in exp_.
FLAGS = (
    "-O3",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fopenmp",
    "-std=gnu++17",
    "-shared",
    "-fPIC",
)
INSTRUCTIONS: Mapping[str, tuple[str, ...]] = {
    "native": ("-march=native",),
    # What most processors have: to see on a better one that it works there, and how fast.
    "avx2": ("-march=x86-64-v3", "-mtune=native"),
}
COMPILERS = ("c++", "g++", "clang++")
ABI = 3
TIME_LIMIT = 600  # seconds; ten are enough on an idle machine


class NoKernelsError(SfumatoError):
    """The C++ kernels can't be had here; the message is the reason."""


@functools.cache
def kernels(instructions: str = "") -> ctypes.CDLL:
    """The compiled kernels, loaded once a process. Raises `NoKernelsError`.

    `instructions` is one of `INSTRUCTIONS`; by default what SFUMATO_INSTRUCTIONS says, and "native" without it.
    """
    import torch  # noqa: F401  its OpenMP runtime has to be in the process first: two would fight over the processor

    instructions = instructions or os.environ.get("SFUMATO_INSTRUCTIONS") or "native"
    if instructions not in INSTRUCTIONS:
        raise NoKernelsError(f"SFUMATO_INSTRUCTIONS is {instructions!r}: use {' or '.join(INSTRUCTIONS)}")
    flags = (*FLAGS, *INSTRUCTIONS[instructions])
    if os.environ.get("SFUMATO_NO_KERNELS"):
        raise NoKernelsError("SFUMATO_NO_KERNELS is set")
    if platform.machine().lower() not in ("x86_64", "amd64") or not {"avx2", "f16c"} <= set(_processor().split()):
        raise NoKernelsError("the compiled kernels need an x86-64 processor with AVX2")
    compiler = next((found for name in COMPILERS if (found := shutil.which(name))), None)
    path = cache_folder() / f"kernels-{_key(compiler, flags)}.so"
    if not path.is_file():
        if compiler is None:
            raise NoKernelsError("there is no C++ compiler (g++ or clang++): install one for the compiled kernels")
        _compile(compiler, flags, path)
    try:
        library = ctypes.CDLL(str(path))
        if library.sfumato_abi() != ABI:
            raise NoKernelsError(f"{path} is of another version: delete it")
    except (OSError, AttributeError) as error:
        raise NoKernelsError(f"{path} doesn't load: {error}; delete it") from error
    return library


def why_not() -> str:
    """The reason there are no compiled kernels here, "" where there are."""
    try:
        kernels()
    except NoKernelsError as error:
        return str(error)
    return ""


def _key(compiler: str | None, flags: Sequence[str]) -> str:
    """Changes with the sources, the flags, the compiler and the processor."""
    digest = hashlib.sha256("\0".join((*flags, compiler or "", _processor())).encode())
    for source in sorted(SOURCES.iterdir()):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:24]


@functools.cache
def _processor() -> str:
    """Name and features of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags"))}))


def _compile(compiler: str, flags: Sequence[str], path: Path) -> None:
    """Compile into a file of its own and give it its name when it is whole: several processes may do so at once."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.part")
    command = [compiler, *flags, str(SOURCES / "kernels.cpp"), "-o", str(temporary)]
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIME_LIMIT, check=False)
        if done.returncode != 0:
            raise NoKernelsError(f"{compiler} can't compile the kernels: {_first_error(done.stderr)}")
        temporary.replace(path)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoKernelsError(f"the kernels can't be compiled into {path.parent}: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _first_error(output: str) -> str:
    lines = (
        [line for line in output.splitlines() if "error" in line.lower()] or output.splitlines() or ["no reason given"]
    )
    return lines[0][:200]
