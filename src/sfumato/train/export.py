"""What a run has trained as folders that other programs load: a whole model, an autoencoder, a retriever.

Each appears whole or not at all. The model's card is written by what knows more than a run does (`sfumato.report`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sfumato.files import atomic_folder, write_text
from sfumato.models import autoencoder as autoencoder_files
from sfumato.models import clip_text, unet
from sfumato.models.autoencoder import Autoencoder
from sfumato.models.clip import TRANSFORMERS, Clip
from sfumato.models.diffusers_folder import WEIGHT_FILES, model_index
from sfumato.prompt.tokenizer import TOKENIZER_FILES
from sfumato.safety.checker import MEAN, STD
from sfumato.train.diffusion import DiffusionTraining, LatentDiffusion
from sfumato.train.noise_levels import NoiseConfig
from sfumato.train.publish import publish
from sfumato.weights.mapper import Layout


def scheduler_config(noise: NoiseConfig) -> dict[str, Any]:
    """`scheduler_config.json`: the schedule that the model was trained with, and v1's sampler and its conventions.

    With zero terminal SNR the steps are spaced from the last timestep down, as Lin et al. (2023) ask for it: PNDM has
    no such schedule, so the sampler is DDIM then.
    """
    schedule = {
        "_diffusers_version": "0.12.0",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "num_train_timesteps": 1000,
        "prediction_type": noise.prediction,
        "set_alpha_to_one": False,
        "clip_sample": False,
    }
    if noise.zero_terminal_snr:
        spaced = {"timestep_spacing": "trailing", "rescale_betas_zero_snr": True}
        return {"_class_name": "DDIMScheduler", **schedule, **spaced}
    return {"_class_name": "PNDMScheduler", **schedule, "skip_prk_steps": True, "steps_offset": 1}


def publish_model(
    module: LatentDiffusion,
    config: DiffusionTraining,
    autoencoder: Autoencoder,
    tokenizer: Path,
    folder: Path,
    *,
    dtype: torch.dtype = torch.float16,
    overwrite: bool = False,
) -> None:
    """A whole model as a diffusers folder: unet, vae, text_encoder, tokenizer, scheduler and index.

    `tokenizer` is the folder its files are copied from. Raises `OutputError` where the folder can't be written or isn't
    empty.
    """
    with atomic_folder(folder, overwrite=overwrite) as temporary:
        text = module.text_encoder
        parts: dict[str, tuple[nn.Module, Layout, Mapping[str, Any]]] = {
            "unet": (module.unet, unet.DIFFUSERS, module.unet.config.to_published()),
            "vae": (autoencoder, autoencoder_files.DIFFUSERS, autoencoder.config.to_published()),
            "text_encoder": (text, clip_text.DIFFUSERS, text.config.to_published()),
        }
        for name, (part, layout, published) in parts.items():
            publish(part, layout, published, temporary / name, file_name=WEIGHT_FILES[name], dtype=dtype)
        copy_tokenizer(tokenizer, temporary / "tokenizer")
        scheduler = scheduler_config(config.noise)
        (temporary / "scheduler").mkdir()
        _write_json(temporary / "scheduler" / "scheduler_config.json", scheduler)
        _write_json(temporary / "model_index.json", model_index(scheduler, guidance_scale=config.guidance_scale))


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
