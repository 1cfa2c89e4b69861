"""Any tensors in any memory layout: what torch and safetensors write is read bit for bit as they read it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from sfumato.weights.checkpoint import Checkpoint, open_checkpoint

DTYPES = (
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float64,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
)

quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)


@st.composite
def views(draw: st.DrawFn) -> torch.Tensor:
    """A view of a storage: permuted, sliced with steps, offset, 0-dimensional, empty."""
    shape = draw(st.lists(st.integers(0, 5), max_size=4))
    dtype = draw(st.sampled_from(DTYPES))
    tensor = torch.randint(0, 100, shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 99)))).to(dtype)
    tensor = tensor.permute(draw(st.permutations(range(len(shape)))))
    for axis, size in enumerate(tensor.shape):
        first = draw(st.integers(0, size))
        tensor = tensor[
            (slice(None),) * axis + (slice(first, draw(st.integers(first, size)), draw(st.integers(1, 3))),)
        ]
    return tensor


def containers(tensors: st.SearchStrategy[torch.Tensor]) -> st.SearchStrategy[Any]:
    """Tensors, and what else lies about in checkpoints, in dictionaries, lists and tuples."""
    leaves = tensors | st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=20)
    return st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3) | st.tuples(inner, inner),
        max_leaves=8,
    )


def flattened(value: Any, name: str = "") -> dict[str, torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return {name: value}
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    return {
        key: tensor
        for part, child in items
        for key, tensor in flattened(child, f"{name}.{part}" if name else str(part)).items()
    }


def assert_equal(checkpoint: Checkpoint, theirs: dict[str, torch.Tensor]) -> None:
    assert set(checkpoint.tensors) == set(theirs)
    for name, tensor in theirs.items():
        ours = checkpoint.read(name)
        assert (ours.dtype, ours.shape) == (tensor.dtype, tensor.shape)
        assert checkpoint.tensors[name].nbytes == tensor.numel() * tensor.element_size()
        assert torch.equal(ours, tensor)
        assert torch.equal(checkpoint.read(name, torch.float16), tensor.to(torch.float16))


@quick
@given(
    content=st.dictionaries(names.filter(lambda name: "." not in name), containers(views()), max_size=4),
    zipped=st.booleans(),
)
def test_torch_files(content: dict[str, Any], zipped: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.ckpt"
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
        theirs = flattened(torch.load(path, weights_only=True))
        with open_checkpoint(path) as checkpoint:
            assert_equal(checkpoint, theirs)


@quick
@given(base=views(), count=st.integers(1, 4))
def test_tensors_that_share_a_storage(base: torch.Tensor, count: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.ckpt"
        torch.save({str(index): base[index:] if base.dim() else base for index in range(count)}, path)
        with open_checkpoint(path) as checkpoint:
            assert_equal(checkpoint, torch.load(path, weights_only=True))


@quick
@given(content=st.dictionaries(names.filter(lambda name: name != "__metadata__"), views(), max_size=6))
def test_safetensors_files(content: dict[str, torch.Tensor]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save_file({name: tensor.contiguous().clone() for name, tensor in content.items()}, path)
        with open_checkpoint(path) as checkpoint:
            assert_equal(checkpoint, load_file(path))
