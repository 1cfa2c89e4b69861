"""The machine: processor, threads, memory and how it is handed out. Reading is apart from judging."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sfumato.doctor.finding import Finding, advice, ok
from sfumato.runtime import OPENMP_SPINS, free_system_memory

_ALLOCATORS = ("tcmalloc", "jemalloc", "mimalloc")
_GIB = 2**30
_V1_FLOAT32 = 6 * _GIB  # a model of v1's size in float32 with what a picture of 512×512 needs
_V1_LEAST = 3 * _GIB  # in half precision
_BUSY = 0.5  # of the cores, by the load average: another program takes a share that shows


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineFacts:
    """What the system says of itself. `cpuinfo` is Linux's text, "" elsewhere; bytes, or None where nobody says;
    `usable` are the processors that this process may use, `quota` how many a container allows it."""

    processor: str
    cpuinfo: str
    usable: int
    quota: float | None
    load: float | None
    memory: int | None
    free: int | None
    huge_pages: str
    loaded: str
    environment: Mapping[str, str]


def machine_facts() -> MachineFacts:
    """Read the facts of this machine and process."""
    cpuinfo = _text("/proc/cpuinfo")
    named = re.search(r"model name\s*: (.*)", cpuinfo)
    affinity = getattr(os, "sched_getaffinity", None)
    load: float | None = None
    with suppress(OSError):
        load = os.getloadavg()[0]
    return MachineFacts(
        processor=named[1] if named else platform.processor() or platform.machine(),
        cpuinfo=cpuinfo,
        usable=len(affinity(0)) if affinity is not None else os.cpu_count() or 1,
        quota=_quota(_text("/sys/fs/cgroup/cpu.max")),
        load=load,
        memory=_kilobytes(_text("/proc/meminfo"), "MemTotal"),
        free=free_system_memory(),
        huge_pages=_text("/sys/kernel/mm/transparent_hugepage/enabled"),
        loaded=_text("/proc/self/maps"),
        environment=os.environ,
    )


def machine_findings(facts: MachineFacts, *, threads: int | None, capability: str) -> Iterator[Finding]:
    """Judge a machine. `threads` and `capability` are torch's: how many it uses, for which processor its code is."""
    yield _processor(facts, capability)
    yield _threads(facts, threads)
    if facts.load is not None:
        yield _load(facts, facts.load)
    if "libgomp" in facts.loaded:
        yield _waiting(facts)
    yield _memory(facts)
    yield _allocator(facts)
    if facts.huge_pages:
        yield _huge_pages(facts)


def physical_cores(facts: MachineFacts) -> int:
    """Cores that this process can use, hyper-threads not counted."""
    packages = re.findall(r"^physical id\s*: (\d+)", facts.cpuinfo, re.MULTILINE)
    numbers = re.findall(r"^core id\s*: (\d+)", facts.cpuinfo, re.MULTILINE)
    cores = len(set(zip(packages, numbers, strict=False))) or facts.usable
    allowed = min(cores, facts.usable)
    return max(1, min(allowed, int(facts.quota)) if facts.quota else allowed)


def _processor(facts: MachineFacts, capability: str) -> Finding:
    flags = set(facts.cpuinfo.split())
    features = {
        "AVX2": "avx2" in flags,
        "AVX-512": "avx512f" in flags,
        "bfloat16": "avx512_bf16" in flags or "amx_bf16" in flags,
        "AMX": "amx_tile" in flags,
    }
    has = [name for name, there in features.items() if there]
    seen = f"{facts.processor}: {', '.join(has) or 'none of AVX2, AVX-512, bfloat16, AMX'}; torch uses {capability}"
    lesser = "ATEN_CPU_CAPABILITY" in facts.environment
    if features["AVX2"] and (capability == "DEFAULT" or lesser):
        return advice("processor", seen, "unset ATEN_CPU_CAPABILITY: torch leaves out what this processor can do")
    if facts.cpuinfo and "x86" in platform.machine().lower() and not features["AVX2"]:
        return advice("processor", seen, "expect a fraction of the speed: the fast engines need AVX2")
    return ok("processor", seen)


def _threads(facts: MachineFacts, threads: int | None) -> Finding:
    cores = physical_cores(facts)
    limit = f", {facts.quota:g} allowed by the container" if facts.quota else ""
    seen = f"torch uses {threads or 'an unknown number'} for {cores} physical cores ({facts.usable} processors{limit})"
    if threads is not None and threads > cores:
        return advice(
            "threads", seen, f"set OMP_NUM_THREADS={cores}: more than there are cores get in each other's way"
        )
    if threads is not None and threads < cores:
        return advice("threads", seen, f"set OMP_NUM_THREADS={cores}: {cores - threads} cores are left unused")
    return ok("threads", seen)


def _load(facts: MachineFacts, load: float) -> Finding:
    seen = f"load average {load:.1f} on {facts.usable} processors"
    if load > _BUSY * facts.usable:
        return advice("other programs", seen, "wait for them, or end them: they take their share")
    return ok("other programs", seen)


def _waiting(facts: MachineFacts) -> Finding:
    """How long OpenMP's threads wait awake. Commands bound it for themselves; importing the library changes nothing."""
    name = "OMP_WAIT_POLICY" if "OMP_WAIT_POLICY" in facts.environment else "GOMP_SPINCOUNT"
    value = facts.environment.get(name)
    programs = f"set GOMP_SPINCOUNT={OPENMP_SPINS} for programs of your own that import sfumato"
    if value == OPENMP_SPINS:
        return ok("waiting threads", f"{name}={value}, which every command sets for itself; {programs}")
    if value is None or value.lower() == "active":
        seen = f"{name}={value}" if value else "awake for as long as OpenMP's default"
        return advice("waiting threads", seen, f"{programs}: awake they take cores from those that compute")
    return ok("waiting threads", f"{name}={value}")


def _memory(facts: MachineFacts) -> Finding:
    if facts.memory is None or facts.free is None:
        return ok("memory", "the system doesn't say")
    seen = f"{facts.free / _GIB:.1f} of {facts.memory / _GIB:.1f} GiB free"
    if facts.free < _V1_LEAST:
        return advice("memory", seen, "end other programs: models of v1's size don't fit; the embedded one does")
    if facts.free < _V1_FLOAT32:
        return advice("memory", seen, "end other programs, or expect v1's models to be slower: they take 6 in float32")
    return ok("memory", seen)


def _allocator(facts: MachineFacts) -> Finding:
    found = next((name for name in _ALLOCATORS if name in facts.loaded), None)
    if found is not None:
        return ok("allocator", found)
    if not facts.loaded:
        return ok("allocator", "the system's")
    return advice(
        "allocator",
        "the system's, which gives large blocks back and asks for them again",
        "install tcmalloc (libtcmalloc-minimal4) and start with LD_PRELOAD=libtcmalloc_minimal.so.4",
    )


def _huge_pages(facts: MachineFacts) -> Finding:
    found = re.search(r"\[(\w+)\]", facts.huge_pages)
    mode = found[1] if found else facts.huge_pages.strip()
    if mode == "always":
        return ok("huge pages", "always")
    if mode == "madvise":
        if facts.environment.get("THP_MEM_ALLOC_ENABLE") == "1":
            return ok("huge pages", "where asked for, and torch asks for them")
        return advice("huge pages", "only where a program asks for them", "set THP_MEM_ALLOC_ENABLE=1: torch asks then")
    how = "as root: echo madvise > /sys/kernel/mm/transparent_hugepage/enabled, and set THP_MEM_ALLOC_ENABLE=1"
    return advice("huge pages", mode, how)


def _quota(text: str) -> float | None:
    words = text.split()
    if len(words) != 2 or words[0] == "max":
        return None
    return int(words[0]) / int(words[1])


def _kilobytes(text: str, name: str) -> int | None:
    found = re.search(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def _text(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
