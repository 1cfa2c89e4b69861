"""What a run has trained as folders that other programs load: a whole model, an autoencoder, a retriever.

Each appears whole or not at all. The model's card is written by what knows more than a run does (`sfumato.report`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sfumato.files import atomic_folder, make_folder, write_text
from sfumato.modelfiles.model_parts import CLIP, NETWORKS, VAE, write_json, write_module
from sfumato.models.autoencoder import Autoencoder
from sfumato.models.clip import Clip
from sfumato.models.clip_text import ClipText
from sfumato.models.diffusers_folder import model_index
from sfumato.models.unet import UNet
from sfumato.prompt.tokenizer import TOKENIZER_FILES, tokenizer_files
from sfumato.safety.checker import MEAN, STD


def publish_model(
    networks: Mapping[str, UNet | Autoencoder | ClipText],
    tokenizer: Path,
    scheduler: Mapping[str, Any],
    folder: Path,
    *,
    guidance_scale: float | None = None,
    dtype: torch.dtype = torch.float16,
    overwrite: bool = False,
) -> None:
    """Write a whole model as a diffusers folder: unet, vae, text_encoder, tokenizer, scheduler and index.

    `networks` are the first three by those names, `tokenizer` is the folder its files are copied from, `scheduler` its
    JSON. Raises `OutputError` where the folder can't be written or isn't empty.
    """
    with atomic_folder(folder, overwrite=overwrite) as temporary:
        for name, network in networks.items():
            write_module(temporary / name, NETWORKS[name], network, dtype=dtype)
        write_frame(temporary, tokenizer_files(tokenizer), scheduler, guidance_scale=guidance_scale)


def write_frame(
    folder: Path,
    tokenizer: Mapping[str, str],
    scheduler: Mapping[str, Any],
    *,
    checker: frozenset[str] = frozenset(),
    requires_safety_checker: bool = False,
    guidance_scale: float | None = None,
) -> None:
    """Write what a model's folder has beside its networks: the tokenizer's files, the scheduler, the index.

    The keywords are as in `model_index`. Raises `OutputError`.
    """
    write_tokenizer(tokenizer, folder / "tokenizer")
    make_folder(folder / "scheduler")
    write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    index = model_index(
        scheduler,
        checker=checker,
        requires_safety_checker=requires_safety_checker,
        guidance_scale=guidance_scale,
    )
    write_json(folder / "model_index.json", index)


def publish_autoencoder(
    autoencoder: Autoencoder, folder: Path, *, dtype: torch.dtype = torch.float16, overwrite: bool = False
) -> None:
    """Write an autoencoder as diffusers' `vae` folder. Raises `OutputError`."""
    with atomic_folder(folder, overwrite=overwrite) as temporary:
        write_module(temporary, VAE, autoencoder, dtype=dtype)


def publish_clip(
    clip: Clip, tokenizer: Path, folder: Path, *, dtype: torch.dtype = torch.float32, overwrite: bool = False
) -> None:
    """Write a CLIP model as transformers' `CLIPModel`, with its tokenizer and preprocessor. Raises `OutputError`."""
    with atomic_folder(folder, overwrite=overwrite) as temporary:
        write_module(temporary, CLIP, clip, dtype=dtype)
        write_tokenizer(tokenizer_files(tokenizer), temporary)
        write_json(temporary / "preprocessor_config.json", _preprocessor(clip.config.vision.image_size))


def write_tokenizer(files: Mapping[str, str], folder: Path) -> None:
    """Write a tokenizer's files into a folder; the names are ours, not the folder's. Raises `OutputError`."""
    make_folder(folder)
    for name in files.keys() & set(TOKENIZER_FILES):
        write_text(folder / name, files[name])


def _preprocessor(side: int) -> dict[str, Any]:
    """Say what `sfumato.safety.checker.preprocess` does, in transformers' words."""
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": side},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": side, "width": side},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "do_convert_rgb": True,
        "image_mean": [round(float(value), 8) for value in MEAN],
        "image_std": [round(float(value), 8) for value in STD],
    }
