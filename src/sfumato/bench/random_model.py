"""A model of v1-4's shapes with random weights, as a folder that every contender reads."""

from __future__ import annotations

import shutil
import zlib
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.errors import OutputError
from sfumato.files import atomic_folder, locked, make_folder
from sfumato.json_files import read_object
from sfumato.modelfiles.model_parts import NETWORKS, Network, write_part
from sfumato.modelfiles.open_model import V1
from sfumato.modelfiles.publish_model import write_frame
from sfumato.models.autoencoder import Autoencoder, AutoencoderConfig
from sfumato.models.clip_text import ClipText, ClipTextConfig
from sfumato.models.unet import UNet
from sfumato.models.unet_config import UNetConfig
from sfumato.nn.empty import empty_modules
from sfumato.prompt.tokenizer import tokenizer_files
from sfumato.weights.mapped_file import TensorInfo
from sfumato.weights.mapper import written_entries

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
        parts: dict[str, UNet | Autoencoder | ClipText] = {
            "unet": UNet(unet_config or UNetConfig()),
            "vae": Autoencoder(vae_config or AutoencoderConfig()),
            "text_encoder": ClipText(text_config or ClipTextConfig()),
        }
    make_folder(folder.parent)
    with locked(folder.with_suffix(".lock")):
        if folder.is_dir():
            return folder
        _check_room(folder.parent, sum(map(_bytes, parts.values())))
        with atomic_folder(folder) as new:
            for name, module in parts.items():
                _write(new / name, NETWORKS[name], module)
            write_frame(new, tokenizer_files(tokenizer), read_object(V1 / "scheduler" / "scheduler_config.json"))
    return folder


def _write(folder: Path, network: Network[Any], module: UNet | Autoencoder | ClipText) -> None:
    entries = {entry.theirs: entry for entry in written_entries(module, network.layout)}
    infos = {name: TensorInfo(dtype=torch.float32, shape=entry.shape) for name, entry in entries.items()}
    config = module.config.to_published()
    write_part(folder, network, config, infos, lambda name: _numbers(entries[name].ours, entries[name].shape))


def _numbers(name: str, shape: tuple[int, ...]) -> Tensor:
    """A tensor as PyTorch initialises it: norms do nothing, biases are zero, matrices keep the size of what they are
    given."""
    if len(shape) < 2:
        return torch.full(shape, 1.0 if name.endswith("weight") else 0.0)
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    numbers = torch.empty(shape)
    if "embedding" in name and len(shape) == 2 and "linear" not in name:
        return numbers.normal_(std=_SPREAD, generator=generator)
    bound = prod(shape[1:]) ** -0.5
    return numbers.uniform_(-bound, bound, generator=generator)


def _bytes(module: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed * 1.02:
        raise OutputError(
            f"{folder}: the random model needs {needed / 1e9:.1f} GB and {free / 1e9:.1f} are free: free some, or set "
            "XDG_CACHE_HOME to another disk"
        )
