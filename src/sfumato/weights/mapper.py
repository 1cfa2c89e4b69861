"""Names: our modules' parameters ↔ the names a published layout gives them. Strict in both directions."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sfumato.errors import CheckpointError
from sfumato.nn.lazy_weights import STORED, store

if TYPE_CHECKING:
    from sfumato.weights.checkpoint import Checkpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How one published layout names one model's modules.

    `modules` maps a prefix of our names to the prefixes the layout may use for it; the first is the one written, the
    longest of ours that fits wins, and what follows it is kept (so `{"conv_in": ("input_blocks.0.0",)}` maps
    `conv_in.weight`). `ignored` are names (with `*`) that may be in a file and mean nothing to us. `kernels` are
    prefixes of ours that the layout stores as 1×1 convolutions where we have linear layers. `spelling` rewrites
    whole names at the end.
    """

    modules: Mapping[str, tuple[str, ...]]
    ignored: tuple[str, ...] = ()
    kernels: frozenset[str] = frozenset()
    spelling: Callable[[str], str] | None = None

    def names(self, ours: str) -> tuple[str, ...]:
        """The names `ours` may have in this layout, the one to write first."""
        prefix = ours
        while prefix and prefix not in self.modules:
            prefix = prefix.rpartition(".")[0]
        if not prefix:
            raise KeyError(f"the layout has no rule for {ours}")
        names = tuple(theirs + ours[len(prefix) :] for theirs in self.modules[prefix])
        return names if self.spelling is None else tuple(map(self.spelling, names))


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor: its name with us, its name in the file, and its shape there."""

    ours: str
    theirs: str
    shape: tuple[int, ...]


def written_entries(module: nn.Module, layout: Layout) -> Iterator[Entry]:
    """What a file in this layout holds for `module`: one entry a tensor, in the module's order."""
    for ours, tensor in module.state_dict().items():
        shape = tuple(tensor.shape)
        if any(ours.startswith(prefix + ".") for prefix in layout.kernels) and len(shape) == 2:
            shape = (*shape, 1, 1)
        yield Entry(ours, layout.names(ours)[0], shape)


def match(module: nn.Module, layout: Layout, checkpoint: Checkpoint, *, within: str | None = "") -> list[Entry]:
    """Pair every tensor of `module` with one in `checkpoint`.

    `within` limits the check for left-over names to those that start with it (a single file holds several models);
    None leaves the check out.
    Raises `CheckpointError` naming the first missing, left-over or mis-shaped tensors.
    """
    found, missing, misshaped = [], [], []
    for ours, tensor in module.state_dict().items():
        alternatives = layout.names(ours)
        theirs = next((name for name in alternatives if name in checkpoint.tensors), None)
        if theirs is None:
            missing.append(alternatives[0])
            continue
        shape = tuple(checkpoint.tensors[theirs].shape)
        if not same_numbers(shape, tuple(tensor.shape)):
            misshaped.append(f"{theirs} is {shape}, expected {tuple(tensor.shape)}")
        found.append(Entry(ours, theirs, shape))
    used = {entry.theirs for entry in found}
    extra = [
        name
        for name in checkpoint.tensors
        if within is not None
        and name.startswith(within)
        and name not in used
        and not any(fnmatch.fnmatchcase(name, pattern) for pattern in layout.ignored)
    ]
    for problem, names in (("lacks", missing), ("has the wrong shape for", misshaped), ("has unknown", extra)):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise CheckpointError(f"{checkpoint.path} {problem} {', '.join(names[:3])}{more}")
    return found


def same_numbers(theirs: tuple[int, ...], ours: tuple[int, ...]) -> bool:
    """Equal shapes, or a linear layer and a 1×1 convolution of the same size: the numbers are the same."""
    return theirs == ours or (
        {len(theirs), len(ours)} == {2, 4} and theirs[:2] == ours[:2] and {*theirs[2:], *ours[2:]} == {1}
    )


def assign(module: nn.Module, name: str, tensor: Tensor) -> None:
    """Make `tensor`, of any shape, the parameter or buffer `name` of `module`, without a copy."""
    parent_name, _, leaf = name.rpartition(".")
    parent = module.get_submodule(parent_name)
    if leaf in parent._parameters:
        old = parent._parameters[leaf]
        parent._parameters[leaf] = nn.Parameter(tensor, requires_grad=old is not None and old.requires_grad)
    else:
        parent._buffers[leaf] = tensor


def fill(
    module: nn.Module,
    entries: Iterable[Entry],
    checkpoint: Checkpoint,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
) -> None:
    """Give a module built on the `meta` device its numbers, one tensor at a time, so that no second copy exists.

    `dtype` None keeps the file's. On a CPU the numbers lie in memory as torch lays them out, whatever the file's
    layout, so that every layout of a model gives the same bits.
    """
    on_cpu = device is None or device.type == "cpu"
    shapes = {name: tensor.shape for name, tensor in module.state_dict().items()}
    for entry in entries:
        tensor = checkpoint.read(entry.theirs, dtype, aligned=on_cpu).reshape(shapes[entry.ours])
        assign(module, entry.ours, tensor if device is None else tensor.to(device))


_WIDENED = frozenset({torch.float32, torch.float16, torch.bfloat16})
_LARGE = 2**16  # numbers


def fill_as_stored(module: nn.Module, entries: Iterable[Entry], checkpoint: Checkpoint, dtype: torch.dtype) -> None:
    """Fill `module` on a CPU, large weights left where they lie in the mapped file, in the file's own dtype.

    Their layers widen them when they run, and give their pages back then until they are told to `keep` them; the rest,
    a few megabytes, is converted to `dtype`.
    """
    layers = {f"{name}.weight": layer for name, layer in module.named_modules() if type(layer) in STORED}
    shapes = {name: tensor.shape for name, tensor in module.state_dict().items()}
    for entry in entries:
        info, layer = checkpoint.tensors[entry.theirs], layers.get(entry.ours)
        if layer is not None and info.dtype in _WIDENED and prod(info.shape) >= _LARGE:
            weight = checkpoint.read(entry.theirs).reshape(shapes[entry.ours])
            if weight.is_contiguous():
                store(layer, weight, checkpoint.pages(entry.theirs))
                continue
        assign(module, entry.ours, checkpoint.read(entry.theirs, dtype, aligned=True).reshape(shapes[entry.ours]))
