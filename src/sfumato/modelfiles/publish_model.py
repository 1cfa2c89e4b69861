"""What a run has trained as folders that other programs load: a whole model, an autoencoder, a retriever.

Each appears whole or not at all. The model's card is written by what knows more than a run does (`sfumato.report`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sfumato.files import atomic_folder, write_text
from sfumato.modelfiles.publish_part import publish
from sfumato.models import autoencoder as autoencoder_files
from sfumato.models import clip_text, unet
from sfumato.models.autoencoder import Autoencoder
from sfumato.models.clip import TRANSFORMERS, Clip
from sfumato.models.clip_text import ClipText
from sfumato.models.diffusers_folder import WEIGHT_FILES, model_index
from sfumato.models.unet import UNet
from sfumato.prompt.tokenizer import TOKENIZER_FILES
from sfumato.safety.checker import MEAN, STD
from sfumato.weights.mapper import Layout

_LAYOUTS: Mapping[str, Layout] = {
    "unet": unet.DIFFUSERS,
    "vae": autoencoder_files.DIFFUSERS,
    "text_encoder": clip_text.DIFFUSERS,
}


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
            published = network.config.to_published()
            publish(network, _LAYOUTS[name], published, temporary / name, file_name=WEIGHT_FILES[name], dtype=dtype)
        copy_tokenizer(tokenizer, temporary / "tokenizer")
        (temporary / "scheduler").mkdir()
        _write_json(temporary / "scheduler" / "scheduler_config.json", scheduler)
        _write_json(temporary / "model_index.json", model_index(scheduler, guidance_scale=guidance_scale))


def publish_autoencoder(
    autoencoder: Autoencoder, folder: Path, *, dtype: torch.dtype = torch.float16, overwrite: bool = False
) -> None:
    """An autoencoder as diffusers' `vae` folder. Raises `OutputError`."""
    publish(
        autoencoder,
        autoencoder_files.DIFFUSERS,
        autoencoder.config.to_published(),
        folder,
        file_name=WEIGHT_FILES["vae"],
        dtype=dtype,
        overwrite=overwrite,
    )


def publish_clip(
    clip: Clip, tokenizer: Path, folder: Path, *, dtype: torch.dtype = torch.float32, overwrite: bool = False
) -> None:
    """A CLIP model as transformers' `CLIPModel`, with its tokenizer and preprocessor. Raises `OutputError`."""
    side = clip.config.vision.image_size
    with atomic_folder(folder, overwrite=overwrite) as temporary:
        inner = temporary / "model"
        publish(clip, TRANSFORMERS, clip.config.to_published(), inner, file_name="model.safetensors", dtype=dtype)
        for file in inner.iterdir():
            file.rename(temporary / file.name)
        inner.rmdir()
        copy_tokenizer(tokenizer, temporary)
        _write_json(temporary / "preprocessor_config.json", _preprocessor(side))


def copy_tokenizer(source: Path, folder: Path) -> None:
    """The tokenizer's files from one folder to another; the names are ours, not the folder's."""
    folder.mkdir(exist_ok=True)
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            (folder / name).write_bytes((source / name).read_bytes())


def _preprocessor(side: int) -> dict[str, Any]:
    """What `sfumato.safety.checker.preprocess` does, in transformers' words."""
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


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(values, indent=2, sort_keys=True) + "\n")
