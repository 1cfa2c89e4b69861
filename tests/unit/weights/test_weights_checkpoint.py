"""Weight files of every kind, against torch's and safetensors' own readers."""

from __future__ import annotations

import collections
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from sfumato.errors import CheckpointError, ModelNotFound, UnsafeCheckpoint
from sfumato.weights.checkpoint import TensorInfo, find_weights, open_checkpoint

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
]


def example() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    values = {
        f"of.{dtype}".replace("torch.", ""): torch.randn(3, 5, generator=generator).mul(9).to(dtype) for dtype in DTYPES
    }
    return values | {
        "scalar": torch.tensor(2.5),
        "empty": torch.empty(0, 4),
        "nan": torch.tensor([float("nan"), float("-inf")]),
    }


def assert_same(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert ours.dtype == theirs.dtype
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_torch_save(zipped: bool, protocol: int, tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    torch.save(example(), path, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    theirs = torch.load(path, weights_only=protocol < 4)  # its own safe reader stops at protocol 3
    with open_checkpoint(path) as checkpoint:
        assert list(checkpoint.tensors) == list(theirs)
        for name, tensor in theirs.items():
            assert checkpoint.tensors[name] == TensorInfo(dtype=tensor.dtype, shape=tuple(tensor.shape))
            assert_same(checkpoint.read(name), tensor)


def test_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    values = example() | {"fp8": torch.randn(4).to(torch.float8_e4m3fn), "fp8b": torch.randn(4).to(torch.float8_e5m2)}
    save_file(values, path, metadata={"format": "pt", "title": "ŝ"})
    theirs = load_file(path)
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.metadata == {"format": "pt", "title": "ŝ"}
        assert set(checkpoint.tensors) == set(theirs)
        for name, tensor in theirs.items():
            assert_same(checkpoint.read(name).float(), tensor.float())
            assert checkpoint.tensors[name].dtype == tensor.dtype


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_conversion_is_torchs(dtype: torch.dtype, tmp_path: Path) -> None:
    torch.save(example(), tmp_path / "model.ckpt")
    save_file(example(), tmp_path / "model.safetensors")
    for path in tmp_path.iterdir():
        with open_checkpoint(path) as checkpoint:
            for name, tensor in example().items():
                assert_same(checkpoint.read(name, dtype), tensor.to(dtype))


def test_the_content_decides_not_the_name(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "really_torch.safetensors")
    save_file({"a": torch.ones(2)}, tmp_path / "really_safetensors.ckpt")
    for path in tmp_path.iterdir():
        with open_checkpoint(path) as checkpoint:
            assert checkpoint.read("a").tolist() == [1, 1]


@pytest.fixture
def lightning_class(monkeypatch: pytest.MonkeyPatch) -> type:
    """A class pickled by the name that the published v1 checkpoints hold."""
    name = "pytorch_lightning.callbacks.model_checkpoint"
    for parent in ("pytorch_lightning", "pytorch_lightning.callbacks"):
        monkeypatch.setitem(sys.modules, parent, ModuleType(parent))
    module = ModuleType(name)
    module.ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": name})
    monkeypatch.setitem(sys.modules, name, module)
    return module.ModelCheckpoint


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_the_layout_of_the_published_v1_checkpoints(zipped: bool, tmp_path: Path, lightning_class: type) -> None:
    """Everything around the weights is passed over; weights are named as in the state dict."""
    model = torch.nn.Linear(3, 2)
    state = model.state_dict() | {"model_ema.diffusion_modelweight": model.weight.detach() * 2}
    state["parameter"] = torch.nn.Parameter(torch.ones(2))
    content = {
        "epoch": 3,
        "global_step": 470000,
        "pytorch-lightning_version": "1.4.2",
        "state_dict": state,
        "callbacks": {
            lightning_class: {"best_model_score": torch.tensor(0.5), "best_model_path": "x", "monitor": np.float64(1.5)}
        },
        "optimizer_states": [
            {"state": {0: {"exp_avg": torch.ones(2, 3)}}, "param_groups": [{"lr": 1e-4, "betas": (0.9, 0.999)}]}
        ],
        "lr_schedulers": [],
        "size": torch.Size([1, 2]),
        "empty": None,
        "ordered": collections.OrderedDict(done=True),
        "array": np.float32(3.0),
    }
    path = tmp_path / "sd-v1.ckpt"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with open_checkpoint(path) as checkpoint:
        assert list(checkpoint.tensors) == [
            "weight",
            "bias",
            "model_ema.diffusion_modelweight",
            "parameter",
            "callbacks.pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint.best_model_score",
            "optimizer_states.0.state.0.exp_avg",
        ]
        assert_same(checkpoint.read("model_ema.diffusion_modelweight"), model.weight.detach() * 2)
        assert_same(checkpoint.read("optimizer_states.0.state.0.exp_avg"), torch.ones(2, 3))


def test_two_tensors_of_one_name_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    torch.save({"state_dict": {"a": torch.ones(1)}, "a": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="two tensors named 'a'"):
        open_checkpoint(path)


def test_an_expanded_tensor_is_refused(tmp_path: Path) -> None:
    """torch saves one element and a shape of a million: a bomb by design."""
    path = tmp_path / "model.ckpt"
    torch.save({"a": torch.ones(1).expand(1_000_000)}, path)
    with pytest.raises(UnsafeCheckpoint, match="repeats them"):
        open_checkpoint(path)


@pytest.mark.parametrize("kind", ["ckpt", "safetensors"])
def test_views_stay_valid_after_close_and_never_reach_the_file(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"model.{kind}"
    values = {"a": torch.arange(10_000.0)}
    torch.save(values, path) if kind == "ckpt" else save_file(values, path)
    before = path.read_bytes()
    with open_checkpoint(path) as checkpoint:
        view = checkpoint.read("a")
        converted = checkpoint.read("a", torch.float16)
    view += 1
    assert_same(view, values["a"] + 1)
    assert_same(converted, values["a"].half())
    assert path.read_bytes() == before
    with pytest.raises(CheckpointError, match="already closed"):
        checkpoint.read("a")


def test_conversion_does_not_undo_changes_to_a_view(tmp_path: Path) -> None:
    """Pages of converted tensors are given back to the system: not those somebody holds a view of."""
    save_file({"a": torch.zeros(1_000_000)}, tmp_path / "model.safetensors")
    with open_checkpoint(tmp_path / "model.safetensors") as checkpoint:
        view = checkpoint.read("a")
        view.fill_(1)
        assert checkpoint.read("a", torch.float16).sum() == 0
        assert view.sum() == 1_000_000


def test_unaligned_data_is_read(tmp_path: Path) -> None:
    header = json.dumps(
        {
            "w": {"dtype": "F32", "shape": [2], "data_offsets": [1, 9]},
            "b": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
        }
    )
    header = header.ljust(len(header) // 8 * 8 + 8).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\x07" + torch.tensor([1.0, 2.0]).numpy().tobytes())
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.read("w").tolist() == [1, 2]
        assert checkpoint.read("w").data_ptr() % 4 == 0
        assert checkpoint.read("b").item() == 7


def test_shards(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "model-00001-of-00002.safetensors", metadata={"format": "pt"})
    torch.save({"b": torch.zeros(3)}, tmp_path / "model-00002-of-00002.bin")
    index = tmp_path / "model.safetensors.index.json"
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.bin"}
    index.write_text(json.dumps({"metadata": {"total_size": 20}, "weight_map": shards}))
    with open_checkpoint(index) as checkpoint:
        assert list(checkpoint.tensors) == ["a", "b"]
        assert checkpoint.metadata == {"format": "pt"}
        assert checkpoint.read("a").tolist() == [1, 1]
        assert checkpoint.read("b").tolist() == [0, 0, 0]


def test_missing_things_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"gone\.safetensors: no such weight file"):
        open_checkpoint(tmp_path / "gone.safetensors")
    with pytest.raises(CheckpointError, match="a folder"):
        open_checkpoint(tmp_path)
    os.mkfifo(tmp_path / "pipe.ckpt")
    with pytest.raises(CheckpointError, match="a device or pipe"):
        open_checkpoint(tmp_path / "pipe.ckpt")
    save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    with (
        open_checkpoint(tmp_path / "model.safetensors") as checkpoint,
        pytest.raises(CheckpointError, match="no tensor 'b'"),
    ):
        checkpoint.read("b")


@pytest.mark.parametrize(
    ("present", "variant", "found"),
    [
        (
            ["diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"],
            None,
            "diffusion_pytorch_model.safetensors",
        ),
        (["model.safetensors", "model.fp16.safetensors"], None, "model.safetensors"),
        (["model.safetensors", "model.fp16.safetensors"], "fp16", "model.fp16.safetensors"),
        (["model.safetensors"], "fp16", "model.safetensors"),
        (["model.safetensors.index.json"], None, "model.safetensors.index.json"),
        (["model.safetensors.index.fp16.json", "model.safetensors"], "fp16", "model.safetensors.index.fp16.json"),
        (["pytorch_model.bin"], None, "pytorch_model.bin"),
    ],
)
def test_find_weights(present: list[str], variant: str | None, found: str, tmp_path: Path) -> None:
    for name in present:
        (tmp_path / name).touch()
    assert find_weights(tmp_path, variant=variant) == tmp_path / found


def test_find_weights_in_vain(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="no weights in it"):
        find_weights(tmp_path)


LOAD = """
import sys, torch
from pathlib import Path
from sfumato.weights.checkpoint import open_checkpoint
dtype = getattr(torch, sys.argv[2]) if len(sys.argv) > 2 else None
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) * 1024
before = peak()
with open_checkpoint(Path(sys.argv[1])) as checkpoint:
    tensors = [checkpoint.read(name, dtype) for name in checkpoint.tensors]
assert all(tensor.amin() == tensor.amax() == 1 for tensor in tensors)
print(peak() - before)
"""


@pytest.mark.parametrize("kind", ["ckpt", "safetensors"])
@pytest.mark.parametrize(("dtype", "factor"), [(None, 1.0), ("float16", 0.5)])
def test_loading_holds_one_copy(kind: str, dtype: str | None, factor: float, tmp_path: Path) -> None:
    """160 MB in ten tensors: the peak is what is kept, plus one tensor being converted."""
    path = tmp_path / f"model.{kind}"
    values = {f"w{index}": torch.ones(2**22) for index in range(10)}
    torch.save(values, path) if kind == "ckpt" else save_file(values, path)
    command = [sys.executable, "-c", LOAD, str(path), *([dtype] if dtype else [])]
    environment = {"PYTHONPATH": ":".join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert int(done.stdout) <= factor * 160 * 2**20 + 32 * 2**20


def test_shards_of_torch_save_are_found_by_their_index(tmp_path: Path) -> None:
    """The Hub's older models have `pytorch_model.bin.index.json` and nothing else; a plain file comes before it."""
    tensors = {"a": torch.ones(2), "b": torch.zeros(3)}
    for i, (name, tensor) in enumerate(tensors.items(), start=1):
        torch.save({name: tensor}, tmp_path / f"pytorch_model-{i:05d}-of-00002.bin")
    shard_of = {name: f"pytorch_model-{i:05d}-of-00002.bin" for i, name in enumerate(tensors, start=1)}
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": shard_of}))
    assert find_weights(tmp_path) == index
    with open_checkpoint(index) as checkpoint:
        assert all(torch.equal(checkpoint.read(name), tensor) for name, tensor in tensors.items())
        assert checkpoint.files == tuple(tmp_path / shard for shard in shard_of.values())
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    assert find_weights(tmp_path) == tmp_path / "pytorch_model.bin"
