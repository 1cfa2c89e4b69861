"""A trained network as a part of a diffusers folder: config.json and safetensors, under the published names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sfumato.files import atomic_folder
from sfumato.weights.mapped_file import TensorInfo
from sfumato.weights.mapper import Layout, written_entries
from sfumato.weights.save import write_safetensors


def publish(
    module: nn.Module,
    layout: Layout,
    config: Mapping[str, Any],
    folder: Path,
    *,
    file_name: str = "diffusion_pytorch_model.safetensors",
    dtype: torch.dtype = torch.float16,
    overwrite: bool = False,
) -> None:
    """Write `module` to `folder` (such as `…/vae`), which appears whole or not at all. `config` is its published JSON.

    Raises `OutputError` where the folder can't be written or isn't empty.
    """
    numbers = module.state_dict()
    entries = {entry.theirs: entry for entry in written_entries(module, layout)}
    infos = {name: TensorInfo(dtype=dtype, shape=entry.shape) for name, entry in entries.items()}
    with atomic_folder(folder, overwrite=overwrite) as temporary:
        (temporary / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        write_safetensors(
            temporary / file_name,
            infos,
            lambda name: numbers[entries[name].ours].to(dtype).reshape(entries[name].shape),
            metadata={"format": "pt"},
        )
