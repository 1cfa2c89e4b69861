"""A model of v1-4's shapes with random weights, as a folder that every contender reads."""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.errors import OutputError
from sfumato.files import atomic_folder, locked, make_folder, write_text
from sfumato.json_files import read_object
from sfumato.modelfiles.open_model import V1
from sfumato.models import autoencoder, clip_text, unet
from sfumato.models.autoencoder import Autoencoder, AutoencoderConfig
from sfumato.models.clip_text import ClipText, ClipTextConfig
from sfumato.models.diffusers_folder import WEIGHT_FILES, model_index
from sfumato.models.unet import UNet
from sfumato.models.unet_config import UNetConfig
from sfumato.nn.empty import empty_modules
from sfumato.weights.mapped_file import TensorInfo
from sfumato.weights.mapper import Layout, written_entries
from sfumato.weights.save import write_safetensors

_SPREAD = 0.02  # of embeddings, as CLIP's are initialised


def random_model(
    folder: Path,
    *,
    unet_config: UNetConfig | None = None,
    vae_config: AutoencoderConfig | None = None,
    text_config: ClipTextConfig | None = None,
    tokenizer: Path = V1 / "tokenizer",
) -> Path:
    """Write the folder if it isn't there yet, tensor by tensor, in float32; v1's shapes where no config is given.

    The numbers depend on the tensors' names and shapes alone. Raises `OutputError`, before any work where the disk
    has no room for it.
    """
    with empty_modules():
        parts: dict[str, tuple[nn.Module, Layout, Mapping[str, Any]]] = {}
        for name, made, layout in (
            ("unet", UNet(unet_config or UNetConfig()), unet.DIFFUSERS),
            ("vae", Autoencoder(vae_config or AutoencoderConfig()), autoencoder.DIFFUSERS),
            ("text_encoder", ClipText(text_config or ClipTextConfig()), clip_text.DIFFUSERS),
        ):
            parts[name] = (made, layout, made.config.to_published())
    make_folder(folder.parent)
    with locked(folder.with_suffix(".lock")):
        if folder.is_dir():
            return folder
        _check_room(folder.parent, sum(_bytes(module) for module, _, _ in parts.values()))
        with atomic_folder(folder) as new:
            for name, (module, layout, config) in parts.items():
                _write_part(module, layout, config, new / name, WEIGHT_FILES[name])
            shutil.copytree(V1 / "scheduler", new / "scheduler")
            shutil.copytree(tokenizer, new / "tokenizer")
            scheduler = read_object(V1 / "scheduler" / "scheduler_config.json")
            write_text(new / "model_index.json", json.dumps(model_index(scheduler), indent=2) + "\n")
    return folder


def _write_part(module: nn.Module, layout: Layout, config: Mapping[str, Any], folder: Path, file_name: str) -> None:
    folder.mkdir()
    write_text(folder / "config.json", json.dumps(config, indent=2) + "\n")
    state = module.state_dict()
    entries = {entry.theirs: entry for entry in written_entries(module, layout)}
    infos = {name: TensorInfo(dtype=_dtype(state[entry.ours]), shape=entry.shape) for name, entry in entries.items()}
    write_safetensors(
        folder / file_name,
        infos,
        lambda name: _numbers(entries[name].ours, infos[name]),
        metadata={"format": "pt"},
    )


def _numbers(name: str, info: TensorInfo) -> Tensor:
    """As PyTorch initialises: norms do nothing, biases are zero, matrices keep the size of what they are given."""
    if not info.dtype.is_floating_point:  # position ids
        return torch.arange(prod(info.shape), dtype=info.dtype).reshape(info.shape)
    if len(info.shape) < 2:
        return torch.full(info.shape, 1.0 if name.endswith("weight") else 0.0)
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    numbers = torch.empty(info.shape)
    if "embedding" in name and len(info.shape) == 2 and "linear" not in name:
        return numbers.normal_(std=_SPREAD, generator=generator)
    bound = prod(info.shape[1:]) ** -0.5
    return numbers.uniform_(-bound, bound, generator=generator)


def _dtype(tensor: Tensor) -> torch.dtype:
    return torch.float32 if tensor.dtype.is_floating_point else tensor.dtype


def _bytes(module: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed * 1.02:
        raise OutputError(
            f"{folder}: the random model needs {needed / 1e9:.1f} GB and {free / 1e9:.1f} are free: free some, or set "
            "XDG_CACHE_HOME to another disk"
        )
