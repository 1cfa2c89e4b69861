"""Bombs cost no memory: above an idle process, opening a file stays within the file's size + 64 MB."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys

import pytest

from support.hostile_files import safetensors, state_dict, tensor, text, torch_zip

MB = 2**20
OPCODES = 300_000
PICKLE = 8 * MB  # the reader's limits
HEADER = 4 * MB

# Runs in a fresh interpreter: each file is opened in a fork of a process that has imported everything, so that its
# peak is its own. Linux's VmHWM counts mapped file pages too.
MEASURE = """
import json, os, sys
from pathlib import Path
from sfumato.errors import CheckpointError
from sfumato.weights.checkpoint import open_checkpoint

def peak():
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))

def opened(path):
    try:
        with open_checkpoint(Path(path)) as checkpoint:
            for name in checkpoint.tensors:
                checkpoint.read(name)
        return "opened"
    except CheckpointError as error:
        return type(error).__name__

results = {}
for path in sys.argv[1:]:
    receive, send = os.pipe()
    if os.fork() == 0:
        before = peak()
        outcome = opened(path)
        os.write(send, json.dumps([outcome, peak() - before]).encode())
        os._exit(0)
    os.close(send)
    results[Path(path).name] = json.loads(os.read(receive, 1000))
    os.wait()
print(json.dumps(results))
"""


def pickle_of(*parts: bytes) -> bytes:
    return torch_zip(b"\x80\x02" + b"".join(parts))


def names() -> bytes:
    """Eight long ways to each of eight long ways to… a hundred tensors."""
    tensors = b"".join(text(f"w{index}") + tensor((1,), (1,)) for index in range(100))
    program = b"\x80\x02}q\x00(" + tensors + b"u"
    for level in range(20):
        ways = b"".join(text(str(index) + "n" * 400) + b"h%c" % level for index in range(8))
        program += b"0}(" + ways + b"uq%c" % (level + 1)
    return torch_zip(program + b".", {"0": bytes(16)})


def every_limit() -> bytes:
    """Text that grows fourfold and as many memo entries as there may be, both in one pickle."""
    entries = b"".join(b"r" + (2**32 - 1 - index).to_bytes(4, "little") for index in range(OPCODES - 7000))
    wide = text("a" * 1000 + "\U0001f600") * ((PICKLE - len(entries)) // 1010 - 10)
    return pickle_of(b"]", entries, wide, b"t")


def legacy(content: bytes, keys: bytes) -> bytes:
    """torch's older format around any content and list of storages."""
    magic, version = pickle.dumps(0x1950A86A20F9469CFC6C, 2), pickle.dumps(1001, 2)
    return magic + version + pickle.dumps({"little_endian": True}, 2) + content + keys


def laughs() -> bytes:
    """A list of a hundred times a list of a hundred times a list…"""
    levels = b"".join(b"0](" + b"h%c" % level * 100 + b"eq%c" % (level + 1) for level in range(30))
    return pickle_of(b"]q\x00", levels, b".")


BOMBS = {
    "lists": lambda: pickle_of(b"]" * (PICKLE - 100), b"."),
    "lists_in_memo": lambda: pickle_of(b"]\x94" * (OPCODES // 2 - 1), b"."),
    "dictionaries": lambda: pickle_of(b"}" * (OPCODES - 1), b"."),
    "dictionary_items": lambda: pickle_of(b"}K\x01K\x02s" * (OPCODES // 4 - 1), b"."),
    "memo": lambda: pickle_of(b"]" + b"\x94" * (OPCODES - 2), b"."),
    "memo_indexes": lambda: pickle_of(
        b"]" + b"".join(b"r" + (2**32 - 1 - index).to_bytes(4, "little") for index in range(OPCODES - 2)), b"."
    ),
    "marks": lambda: pickle_of(b"(" * (OPCODES - 1), b"."),
    "tuples_in_tuples": lambda: pickle_of(b")" + b"\x85" * (OPCODES - 2), b"."),
    "integers": lambda: pickle_of(b"(" + b"J\xff\xff\xff\x7f" * (OPCODES - 3), b"t."),
    "wide_text": lambda: pickle_of(b"(" + text("a" * 1000 + "\U0001f600") * (PICKLE // 1010 - 10), b"t."),
    "LONG4": lambda: pickle_of(b"\x8b\xff\xff\xff\x7f."),
    "text_of_2_GB": lambda: pickle_of(b"X\xff\xff\xff\x7fabc"),
    "pickle_of_20_MB": lambda: pickle_of(b"N" * 20 * MB),
    "entries": lambda: torch_zip(state_dict(tensor()), {str(index): b"" for index in range(40_000)} | {"0": bytes(16)}),
    "tensors": lambda: torch_zip(state_dict(*[tensor()] * 6_000), {"0": bytes(16)}),
    "tensor_repeating_itself": lambda: torch_zip(state_dict(tensor((2**28,), (0,))), {"0": bytes(16)}),
    "storage_of_2_GB": lambda: torch_zip(state_dict(tensor((2**29,), (1,), numel=2**29)), {"0": bytes(16)}),
    "names": names,
    "laughs": laughs,
    "every_limit": every_limit,
    "legacy": lambda: legacy(b"(" + b"]" * (OPCODES - 100) + b"t.", b"(" + b"]" * (OPCODES - 100) + b"l."),
    "legacy_storage": lambda: (
        legacy(state_dict(tensor((2**29,), (1,), numel=2**29)), pickle.dumps(["0"], 2)) + bytes(9)
    ),
    "header_of_lists": lambda: safetensors(b'{"a":[' + b"[]," * (HEADER // 3 - 10) + b"[]]}"),
    "header_at_its_limit": lambda: safetensors(b'{"a":[' + b'"ab",' * 390_000 + b"1]}"),
    "header_of_wide_text": lambda: safetensors(b'{"a": "' + b"a" * (HEADER - 100) + "\U0001f600".encode() + b'"}'),
    "header_of_metadata": lambda: safetensors({"__metadata__": {f"key {index}": "v" * 20 for index in range(80_000)}}),
    "header_of_64_MB": lambda: safetensors(b"{}" + b" " * 64 * MB),
}


@pytest.fixture(scope="module")
def peaks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, int, int]]:
    """For each bomb: what became of it, its peak above idle, and the file's size."""
    folder = tmp_path_factory.mktemp("bombs")
    for name, make in BOMBS.items():
        (folder / name).write_bytes(make())
    command = [sys.executable, "-c", MEASURE, *(str(folder / name) for name in BOMBS)]
    environment = {"PYTHONPATH": ":".join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return {name: (*result, (folder / name).stat().st_size) for name, result in json.loads(done.stdout).items()}


@pytest.mark.parametrize("bomb", BOMBS)
def test_memory_stays_within_the_files_size_and_64_MB(bomb: str, peaks: dict[str, tuple[str, int, int]]) -> None:
    outcome, peak, size = peaks[bomb]
    assert peak <= size + 64 * MB, f"{outcome}: {peak / MB:.0f} MB for a file of {size / MB:.0f} MB"
    harmless = {"memo", "memo_indexes", "integers", "wide_text", "entries", "tensors", "header_of_metadata"}
    assert outcome in (("opened",) if bomb in harmless else ("CheckpointError", "UnsafeCheckpoint"))
