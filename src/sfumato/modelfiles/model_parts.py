"""One network as a part of a model's folder, such as `unet/`: the one way to open, read and write it.

A part is `config.json` and weights under published names. Opening builds the module without numbers and matches its
names with the file's; loading gives it the numbers.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from sfumato.errors import CheckpointError, InvalidConfig, ModelNotFound
from sfumato.files import make_folder, write_text
from sfumato.json_files import read_object
from sfumato.models import autoencoder, clip, clip_text, clip_vision, unet
from sfumato.models.autoencoder import Autoencoder, AutoencoderConfig
from sfumato.models.clip import Clip, ClipConfig
from sfumato.models.clip_text import ClipText, ClipTextConfig
from sfumato.models.clip_vision import ClipVision, ClipVisionConfig
from sfumato.models.unet import UNet
from sfumato.models.unet_config import UNetConfig
from sfumato.nn.empty import empty_modules
from sfumato.runtime import dtype_name
from sfumato.weights.checkpoint import Checkpoint, find_weights, open_checkpoint
from sfumato.weights.mapped_file import TensorInfo
from sfumato.weights.mapper import Entry, Layout, fill, match, written_entries
from sfumato.weights.save import write_safetensors

# What the name of a folder's other files (`….fp16.safetensors`) says of the numbers in them.
VARIANTS: Mapping[str, str] = {"fp16": "float16", "bf16": "bfloat16"}

_CONFIG = "config.json"

Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True, slots=True, kw_only=True)
class Network(Generic[Module]):
    """A kind of network: `build` makes one from its published config, `layout` has its names, `file` those weights."""

    build: Callable[[Mapping[str, Any]], Module]
    layout: Layout
    file: str = "model.safetensors"


_DIFFUSERS = "diffusion_pytorch_model.safetensors"

UNET = Network(build=lambda values: UNet(UNetConfig.from_published(values)), layout=unet.DIFFUSERS, file=_DIFFUSERS)
VAE = Network(
    build=lambda values: Autoencoder(AutoencoderConfig.from_published(values)),
    layout=autoencoder.DIFFUSERS,
    file=_DIFFUSERS,
)
TEXT_ENCODER = Network(build=lambda values: ClipText(ClipTextConfig.from_published(values)), layout=clip_text.DIFFUSERS)
CLIP = Network(build=lambda values: Clip(ClipConfig.from_published(values)), layout=clip.TRANSFORMERS)
SAFETY_CHECKER = Network(
    build=lambda values: ClipVision(ClipVisionConfig.from_published(values)), layout=clip_vision.SAFETY_CHECKER
)

NETWORKS: Mapping[str, Network[Any]] = {"unet": UNET, "vae": VAE, "text_encoder": TEXT_ENCODER}
"""The parts of a model by the names of their folders."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part(Generic[Module]):
    """One network of a model: its module without numbers (on the `meta` device), and where the numbers are."""

    module: Module
    entries: tuple[Entry, ...]
    checkpoint: Checkpoint

    @property
    def parameters(self) -> int:
        """The number of parameters of the module."""
        return sum(parameter.numel() for parameter in self.module.parameters())

    @property
    def dtypes(self) -> Mapping[str, int]:
        """How many tensors the file has of each dtype, by its name as people write it."""
        return Counter(dtype_name(self.checkpoint.tensors[entry.theirs].dtype) for entry in self.entries)

    def load(self, *, dtype: torch.dtype = torch.float32, device: torch.device | None = None) -> Module:
        """Give the module its numbers, and return it. Raises `CheckpointError`."""
        fill(self.module, self.entries, self.checkpoint, dtype=dtype, device=device)
        return self.module


def matched(module: Module, layout: Layout, checkpoint: Checkpoint, *, within: str | None = "") -> Part[Module]:
    """Pair a module with a file's tensors, as `match` does. Raises `CheckpointError`."""
    module.eval().requires_grad_(False)
    return Part(module=module, entries=tuple(match(module, layout, checkpoint, within=within)), checkpoint=checkpoint)


@contextmanager
def open_part(folder: Path, network: Network[Module], *, variant: str | None = None) -> Iterator[Part[Module]]:
    """Open one network of a folder, for the time of the block.

    `variant` "fp16" prefers the half-precision file. Raises `ModelNotFound`, `CheckpointError` (with the tensor's name)
    or `InvalidConfig`.
    """
    path = folder / _CONFIG
    values = read_object(path)
    with naming(path), empty_modules():
        module = network.build(values)
    with open_checkpoint(component_weights(folder, variant)) as checkpoint:
        yield matched(module, network.layout, checkpoint)


def read_part(
    folder: Path, network: Network[Module], *, dtype: torch.dtype = torch.float32, device: torch.device | None = None
) -> Module:
    """Read one network of a folder, ready to run. Raises as `open_part` does."""
    with open_part(folder, network) as part:
        return part.load(dtype=dtype, device=device)


def write_part(
    folder: Path,
    network: Network[Any],
    config: Mapping[str, Any],
    tensors: Mapping[str, TensorInfo],
    read: Callable[[str], Tensor],
    *,
    variant: str | None = None,
    max_shard_bytes: int | None = None,
) -> None:
    """Write a network's `config` and tensors, by their published names, into a folder.

    `read` gives each tensor, of the shape in `tensors`, when its turn comes; `variant` and `max_shard_bytes` are as in
    `write_safetensors`. Raises `OutputError`.
    """
    make_folder(folder)
    write_json(folder / _CONFIG, config)
    write_safetensors(
        folder / network.file,
        tensors,
        read,
        metadata={"format": "pt"},
        variant=variant,
        max_shard_bytes=max_shard_bytes,
    )


def write_module(folder: Path, network: Network[Any], module: Any, *, dtype: torch.dtype) -> None:
    """Write a module that has its numbers, and a config, into a folder. Raises `OutputError`."""
    numbers = module.state_dict()
    entries = {entry.theirs: entry for entry in written_entries(module, network.layout)}
    write_part(
        folder,
        network,
        module.config.to_published(),
        {name: TensorInfo(dtype=dtype, shape=entry.shape) for name, entry in entries.items()},
        lambda name: numbers[entries[name].ours].to(dtype).reshape(entries[name].shape),
    )


def component_weights(folder: Path, variant: str | None = None) -> Path:
    """Find the file to read: the variant asked for, the plain one, or a half-precision one if nothing else is there.

    Raises `ModelNotFound`.
    """
    try:
        return find_weights(folder, variant=variant)
    except ModelNotFound:
        for other in VARIANTS:
            with suppress(ModelNotFound):
                return find_weights(folder, variant=other)
        raise


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Put the file's path before errors about its content that don't have it."""
    try:
        yield
    except (CheckpointError, InvalidConfig) as error:
        if str(path) in str(error):
            raise
        raise type(error)(f"{path}: {error}") from error


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a folder's JSON as diffusers does: indented, its names in order. Raises `OutputError`."""
    write_text(path, json.dumps(values, indent=2, sort_keys=True) + "\n")
