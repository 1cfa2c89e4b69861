"""Whole random models made by diffusers, with the pocket model's real tokenizer, and both programs run on them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any
from unittest import mock

import diffusers
import numpy as np
import torch
import transformers
from numpy.typing import NDArray

import sfumato
from sfumato import Generation
from sfumato.compat import diffusers as compat
from sfumato.pictures.pixels import psnr
from support.tiny import AUTOENCODERS, TEXT_ENCODERS, UNETS, randomise

POCKET = Path(sfumato.__file__).parent / "assets" / "pocket"

# the published v1-4 scheduler configuration
PNDM = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "skip_prk_steps": True,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


def reference_pipeline(
    *, unet: str = "pocket-like", vae: str = "pocket-like", text: str = "v1-like", seed: int = 0, **scheduler: Any
) -> diffusers.StableDiffusionPipeline:
    """diffusers' pipeline around random networks; `scheduler` are changes of the published configuration."""
    text_config = {**TEXT_ENCODERS[text], "max_position_embeddings": 77}
    text_encoder = transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            vocab_size=4000, bos_token_id=3998, eos_token_id=3999, pad_token_id=3999, **text_config
        )
    )
    unet_config = {"layers_per_block": 2, **UNETS[unet], "sample_size": 8}
    unet_config["cross_attention_dim"] = text_config["hidden_size"]
    levels = len(AUTOENCODERS[vae]["block_out_channels"])
    autoencoder = diffusers.AutoencoderKL(
        **{"latent_channels": 4, **AUTOENCODERS[vae]},
        down_block_types=["DownEncoderBlock2D"] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels,
    )
    pipeline = diffusers.StableDiffusionPipeline(
        vae=randomise(autoencoder, seed),
        text_encoder=randomise(text_encoder, seed + 1),
        tokenizer=transformers.CLIPTokenizer.from_pretrained(POCKET / "tokenizer"),
        unet=randomise(diffusers.UNet2DConditionModel(**unet_config), seed + 2),
        scheduler=diffusers.PNDMScheduler(**{**PNDM, **scheduler}),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def reference_pixels(pipeline: diffusers.DiffusionPipeline, latents: torch.Tensor) -> NDArray[np.uint8]:
    """diffusers' pictures (B, H, W, 3) of the latents it returned."""
    with torch.no_grad():
        decoded = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample
    pictures = pipeline.image_processor.postprocess(decoded, output_type="pil")
    return np.stack([np.asarray(picture) for picture in pictures])


class Pair:
    """diffusers' pipeline and ours, both read from one folder that diffusers wrote."""

    def __init__(self, folder: Path, **model: Any) -> None:
        reference_pipeline(**model).save_pretrained(folder)
        self.theirs = diffusers.StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
        self.theirs.set_progress_bar_config(disable=True)
        # diffusers 0.42 looks for `text_encoder.text_model` when it skips layers; transformers 5 has done away with it
        self.theirs.text_encoder.__dict__["text_model"] = self.theirs.text_encoder
        self.ours = compat.StableDiffusionPipeline.from_pretrained(folder)

    def use(self, scheduler: str, **changes: Any) -> None:
        """Give both this scheduler, with the model's configuration and these changes."""
        for pipeline, home in ((self.theirs, diffusers), (self.ours, compat)):
            pipeline.scheduler = getattr(home, scheduler).from_config(pipeline.scheduler.config, **changes)

    def of_class(self, name: str) -> Pair:
        """The same models and schedulers under another pipeline class."""
        other = copy.copy(self)
        other.theirs = getattr(diffusers, name)(**self.theirs.components, requires_safety_checker=False)
        other.theirs.set_progress_bar_config(disable=True)
        other.ours = getattr(compat, name).from_pipe(self.ours)
        return other

    def compare(
        self, *arguments: Any, seed: int | list[int] = 0, where: NDArray[np.bool_] | None = None, **options: Any
    ) -> tuple[float, float]:
        """Run both; the largest difference of the final latents in units of their standard deviation, and PSNR (dB) of
        the pictures, or of the pixels `where` (H, W) says.
        """
        theirs = self.theirs(*arguments, generator=generators(seed), output_type="latent", **options).images
        generate = self.ours.pipeline.generate
        made: list[Generation] = []

        def keep(*given: Any, **named: Any) -> Generation:
            made.append(generate(*given, **named))
            return made[-1]

        with mock.patch.object(self.ours.pipeline, "generate", keep):
            ours = self.ours(*arguments, generator=generators(seed), **options)["images"]
        difference = float((torch.stack(made[0].latents) - theirs).abs().max() / theirs.std())
        pictures = np.stack([np.asarray(image) for image in ours]), reference_pixels(self.theirs, theirs)
        if where is None:
            return difference, psnr(*pictures)
        first, second = (picture[:, where][:, None] for picture in pictures)
        return difference, psnr(first, second)


def generators(seed: int | list[int]) -> Any:
    """One generator, or a list with one a picture."""
    if isinstance(seed, list):
        return [torch.Generator().manual_seed(one) for one in seed]
    return torch.Generator().manual_seed(seed)
