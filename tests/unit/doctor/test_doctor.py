"""`sfumato doctor`: what it makes of machines that are described to it, and of what is on the disk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sfumato import runtime
from sfumato.doctor.finding import Finding
from sfumato.doctor.machine import MachineFacts, machine_facts, machine_findings, physical_cores
from sfumato.doctor.software import extras
from sfumato.doctor.storage import storage_findings
from sfumato.modelfiles.library_index import Record, change_records

GIB = 2**30


def cpuinfo(*, packages: int = 1, cores: int = 2, siblings: int = 1, flags: str = "avx2 avx512f avx512_bf16") -> str:
    """As Linux prints it, a block a hyper-thread."""
    blocks = [
        f"model name\t: A Processor\nphysical id\t: {package}\ncore id\t\t: {core}\nflags\t\t: {flags}\n"
        for package in range(packages)
        for core in range(cores)
        for _ in range(siblings)
    ]
    return "\n".join(blocks)


def facts(**changes: object) -> MachineFacts:
    """A machine at which nothing is to be said, and these changes."""
    values: dict[str, object] = {
        "processor": "A Processor",
        "cpuinfo": cpuinfo(),
        "usable": 2,
        "quota": None,
        "load": 0.1,
        "memory": 16 * GIB,
        "free": 12 * GIB,
        "huge_pages": "[always] madvise never",
        "loaded": "7f00 r-xp /usr/lib/libtcmalloc_minimal.so.4",
        "environment": {},
    }
    return MachineFacts(**(values | changes))


def findings(threads: int = 2, capability: str = "AVX512", **changes: object) -> dict[str, Finding]:
    found = machine_findings(facts(**changes), threads=threads, capability=capability)
    return {finding.about: finding for finding in found}


def test_nothing_is_to_be_said_of_a_machine_as_it_should_be() -> None:
    assert {finding.state for finding in findings().values()} == {"ok"}
    assert findings()["processor"].seen == "A Processor: AVX2, AVX-512, bfloat16; torch uses AVX512"


@pytest.mark.parametrize(
    ("made", "usable", "quota", "cores"),
    [
        (cpuinfo(cores=4, siblings=2), 8, None, 4),  # hyper-threads share a core
        (cpuinfo(packages=2, cores=4), 8, None, 8),  # two sockets number their cores alike
        (cpuinfo(cores=4, siblings=2), 2, None, 2),  # bound to two processors
        (cpuinfo(cores=4), 4, 1.5, 1),  # a container with one and a half
        ("", 6, None, 6),  # not Linux
    ],
)
def test_physical_cores(made: str, usable: int, quota: float | None, cores: int) -> None:
    assert physical_cores(facts(cpuinfo=made, usable=usable, quota=quota)) == cores


@pytest.mark.parametrize(
    ("about", "changes", "word"),
    [
        ("threads", {"threads": 4}, "OMP_NUM_THREADS=2"),
        ("threads", {"threads": 1}, "OMP_NUM_THREADS=2"),
        ("processor", {"capability": "DEFAULT"}, "ATEN_CPU_CAPABILITY"),
        ("other programs", {"load": 3.0}, "share"),
        ("memory", {"free": 2 * GIB}, "don't fit"),
        ("memory", {"free": 5 * GIB}, "slower"),
        ("allocator", {"loaded": "7f00 r-xp /usr/lib/libc.so.6"}, "LD_PRELOAD"),
        ("huge pages", {"huge_pages": "always [madvise] never"}, "THP_MEM_ALLOC_ENABLE=1"),
        ("huge pages", {"huge_pages": "always madvise [never]"}, "as root"),
    ],
)
def test_what_could_be_better_is_said(about: str, changes: dict[str, object], word: str) -> None:
    finding = findings(**changes)[about]
    assert finding.state == "advice"
    assert word in finding.advice


def test_a_containers_limit_counts_as_for_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"max": str(3 * GIB), "current": str(2 * GIB), "stat": "inactive_file 0"}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(runtime, "_GROUPS", (tuple(str(tmp_path / name) for name in files),))
    assert machine_facts().free == GIB


def test_torch_that_asks_for_huge_pages_gets_them() -> None:
    asked = {"huge_pages": "always [madvise] never", "environment": {"THP_MEM_ALLOC_ENABLE": "1"}}
    assert findings(**asked)["huge pages"].state == "ok"


@pytest.mark.parametrize(
    ("environment", "state", "word"),
    [
        ({}, "advice", "set GOMP_SPINCOUNT=2000 for programs of your own that import sfumato"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "advice", "set GOMP_SPINCOUNT=2000"),
        ({"GOMP_SPINCOUNT": "2000"}, "ok", "which every command sets for itself; set GOMP_SPINCOUNT=2000 for programs"),
        ({"OMP_WAIT_POLICY": "passive"}, "ok", "OMP_WAIT_POLICY=passive"),
    ],
)
def test_threads_that_wait_awake_are_told_of(environment: dict[str, str], state: str, word: str) -> None:
    loaded = facts().loaded + "\n7f00 r-xp /usr/lib/libgomp.so.1"
    finding = findings(loaded=loaded, environment=environment)["waiting threads"]
    assert finding.state == state and word in finding.seen + finding.advice


def test_extras_are_named_that_lack_a_package() -> None:
    finding = extras(["torch>=2.11", "pytest>=8; extra == 'sde'", "no-such-thing>=1; extra == 'video'"])
    assert finding.seen == "installed: sde; missing: video (--out walk.mp4)"
    assert extras([]).state == "ok"


def test_the_disk_is_looked_at_and_no_secret_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("SFUMATO_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(b"nonsense")

    def add(records: dict[str, Record]) -> None:
        records["gone"] = Record(name="gone", path=str(tmp_path / "nowhere.safetensors"))
        records["damaged"] = Record(name="damaged", path=str(damaged))

    change_records(add)
    found = list(storage_findings())
    assert not any("hf_secret" in finding.seen + finding.advice for finding in found)
    assert [finding.seen for finding in found if finding.about == "Hub token"] == ["there"]
    assert [(f.about, f.state) for f in found if f.state != "ok" and f.about != "disk"] == [
        ("models", "advice"),
        ("model damaged", "broken"),
    ]
    (tmp_path / "home" / "models.json").write_text(json.dumps({"version": 99, "models": {}}))
    assert any(f.about == "models" and f.state == "broken" for f in storage_findings())
