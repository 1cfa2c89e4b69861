"""Writing safetensors: what the library itself reads and writes, whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from sfumato.errors import CheckpointError, OutputError
from sfumato.files import atomic_folder, atomic_write, write_bytes, write_text
from sfumato.weights.checkpoint import TensorInfo, open_checkpoint
from sfumato.weights.save import write_safetensors


def example() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "unet.b": torch.randn(4, 3, generator=generator),
        "unet.a": torch.randn(5, generator=generator).half(),
        "transposed": torch.randn(3, 4, generator=generator).t(),
        "bf16": torch.randn(3, generator=generator).bfloat16(),
        "scalar": torch.tensor(3),
        "empty": torch.empty(0, 2),
        "flag": torch.tensor([True, False, True]),
        "ŝ": torch.ones(2, dtype=torch.float64),
    }


def infos(tensors: dict[str, torch.Tensor]) -> dict[str, TensorInfo]:
    return {name: TensorInfo(dtype=tensor.dtype, shape=tuple(tensor.shape)) for name, tensor in tensors.items()}


def test_the_library_reads_the_file(tmp_path: Path) -> None:
    tensors = example()
    path = tmp_path / "ours.safetensors"
    assert write_safetensors(path, infos(tensors), tensors.__getitem__, metadata={"format": "pt"}) == [path]
    theirs = load_file(path)
    assert theirs.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert theirs[name].dtype == tensor.dtype and torch.equal(theirs[name], tensor)
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_numbers_lie_where_they_can_be_used_as_they_are(tmp_path: Path) -> None:
    """On 64 bytes, in the file and so in the memory map, whatever the header's length; odd ones on their dtype's."""
    odd = {"scalar": torch.tensor(3), "a": torch.ones(7).half(), "b": torch.ones(3), "c": torch.ones(5).double()}
    whole = {f"w{i}": torch.full((16 * i,), float(i)) for i in range(1, 5)} | {"h": torch.ones(32).half()}
    for padding in range(0, 64, 7):
        path = tmp_path / f"{padding}.safetensors"
        tensors = {**odd, **whole}
        write_safetensors(path, infos(tensors), tensors.__getitem__, metadata={"note": "x" * padding})
        with open_checkpoint(path) as checkpoint:
            for name, tensor in tensors.items():
                found = checkpoint.read(name)
                assert torch.equal(found, tensor)
                assert found.data_ptr() % (64 if name in whole else tensor.element_size()) == 0
                copied = checkpoint.read(name, aligned=True).data_ptr() != found.data_ptr()
                assert copied == (found.data_ptr() % 64 > 0)


def test_shards_hold_everything_once(tmp_path: Path) -> None:
    tensors = {f"w{index}": torch.full((100,), float(index)) for index in range(10)} | {"large": torch.ones(1000)}
    path = tmp_path / "model.safetensors"
    written = write_safetensors(path, infos(tensors), tensors.__getitem__, max_shard_bytes=1200)
    assert [file.name for file in written] == [
        *(f"model-0000{number}-of-00005.safetensors" for number in range(1, 6)),
        "model.safetensors.index.json",
    ]
    assert sorted(tmp_path.iterdir()) == sorted(written)
    theirs = {name: tensor for file in written[:-1] for name, tensor in load_file(file).items()}
    assert {name: tensor.tolist() for name, tensor in theirs.items()} == {n: t.tolist() for n, t in tensors.items()}
    assert json.loads(written[-1].read_text())["metadata"] == {"total_size": 8000}
    assert all(file.stat().st_size < 1200 + 400 for file in written[:4])
    with open_checkpoint(written[-1]) as checkpoint:
        assert set(checkpoint.tensors) == set(tensors)
        assert checkpoint.read("w7").tolist() == [7.0] * 100


def test_one_tensor_is_held_at_a_time(tmp_path: Path) -> None:
    """The producer of the next tensor is called only when the last one is written and let go."""
    import weakref

    alive: list[weakref.ref[torch.Tensor]] = []

    def produce(name: str) -> torch.Tensor:
        assert all(reference() is None for reference in alive)
        tensor = torch.ones(1000)
        alive.append(weakref.ref(tensor))
        return tensor

    tensors = {f"w{index}": TensorInfo(dtype=torch.float32, shape=(1000,)) for index in range(5)}
    write_safetensors(tmp_path / "model.safetensors", tensors, produce)
    assert len(alive) == 5


@pytest.mark.parametrize("limit", [None, 60], ids=["one file", "shards"])
@pytest.mark.parametrize(
    "problem", [KeyboardInterrupt, ValueError, OSError(errno.ENOSPC, "No space left on device")], ids=str
)
def test_nothing_is_left_when_it_fails_halfway(problem: Any, limit: int | None, tmp_path: Path) -> None:
    tensors = example()

    def produce(name: str) -> torch.Tensor:
        if name == "unet.a":
            raise problem
        return tensors[name]

    expected = OutputError if isinstance(problem, OSError) else problem
    with pytest.raises(expected):
        write_safetensors(tmp_path / "model.safetensors", infos(tensors), produce, max_shard_bytes=limit)
    assert list(tmp_path.iterdir()) == []


def test_a_tensor_other_than_announced_is_an_error(tmp_path: Path) -> None:
    for wrong in (torch.ones(3), torch.ones(2).half()):
        with pytest.raises(CheckpointError, match="was announced"):
            write_safetensors(tmp_path / "m.safetensors", infos({"a": torch.ones(2)}), lambda name, wrong=wrong: wrong)
    with pytest.raises(CheckpointError, match="complex64"):
        write_safetensors(
            tmp_path / "m.safetensors", infos({"a": torch.ones(2, dtype=torch.complex64)}), lambda name: torch.ones(2)
        )
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten_unless_asked(tmp_path: Path) -> None:
    path = tmp_path / "out.txt"
    write_text(path, "first")
    with pytest.raises(OutputError, match=r"out\.txt: already exists; pass overwrite"):
        write_text(path, "second")
    assert path.read_text() == "first"
    write_text(path, "second", overwrite=True)
    assert path.read_text() == "second"
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(OutputError, match="already exists"):
        write_bytes(tmp_path / "link", b"x")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["link", "out.txt"]


def test_a_file_that_appears_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "out.txt"
    with pytest.raises(OutputError, match="already exists"), atomic_write(path) as file:
        file.write(b"ours")
        path.write_text("theirs")
    assert path.read_text() == "theirs"
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_is_seen_before_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "out.txt"
    path.write_text("old")
    with atomic_write(path, overwrite=True) as file:
        file.write(b"new")
        file.flush()
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda folder: folder / "missing" / "out.txt", "its folder does not exist"),
        (lambda folder: folder, "a folder has that name"),
        (lambda folder: Path("/proc/out.txt"), "could not be written"),
        (lambda folder: folder / ("x" * 300), "the name is too long"),
    ],
)
def test_what_can_not_be_written_is_one_line(make: Any, reason: str, tmp_path: Path) -> None:
    path = make(tmp_path)
    with pytest.raises(OutputError, match=reason) as caught:
        write_text(path, "x")
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"{path}: ")


def test_a_really_full_disk(tmp_path: Path) -> None:
    """The process may write 1 MB to a file, and the system refuses the rest as it does when the disk is full."""
    program = """
import resource, signal, sys, torch
from pathlib import Path
from sfumato.errors import OutputError
from sfumato.weights.checkpoint import TensorInfo
from sfumato.weights.save import write_safetensors
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
try:
    info = {"a": TensorInfo(dtype=torch.float32, shape=(2**20,))}
    write_safetensors(Path(sys.argv[1]), info, lambda name: torch.ones(2**20))
except OutputError as error:
    print(error)
"""
    environment = {"PYTHONPATH": ":".join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", program, str(tmp_path / "model.safetensors")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert "could not be written" in done.stdout
    assert len(done.stdout.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_killed_while_writing_the_old_file_stays(number: signal.Signals, tmp_path: Path) -> None:
    path = tmp_path / "out.bin"
    path.write_bytes(b"old")
    program = """
import sys, time
from pathlib import Path
from sfumato.files import atomic_write
with atomic_write(Path(sys.argv[1]), overwrite=True) as file:
    file.write(b"new")
    file.flush()
    print("writing", flush=True)
    time.sleep(60)
"""
    command = [sys.executable, "-c", program, str(path)]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={"PYTHONPATH": ":".join(sys.path)},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"writing\n"
        time.sleep(0.05)
        process.send_signal(number)
    assert path.read_bytes() == b"old"
    if number == signal.SIGINT:
        assert list(tmp_path.iterdir()) == [path]


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "model"
    with pytest.raises(ValueError, match="halfway"), atomic_folder(path) as folder:
        (folder / "a").write_text("a")
        raise ValueError("halfway")
    assert list(tmp_path.iterdir()) == []
    path.mkdir()
    with atomic_folder(path) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "a").write_text("a")
        assert list(path.iterdir()) == []
    assert (path / "sub" / "a").read_text() == "a"
    with pytest.raises(OutputError, match="the folder is not empty"), atomic_folder(path):
        pass
    with atomic_folder(path, overwrite=True) as folder:
        (folder / "b").write_text("b")
    assert [file.name for file in path.iterdir()] == ["b"]
    assert list(tmp_path.iterdir()) == [path]
