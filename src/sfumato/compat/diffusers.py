"""diffusers' pipelines and schedulers by their names: a script written for it runs with its import line changed.

    from sfumato.compat.diffusers import StableDiffusionPipeline, LMSDiscreteScheduler

The pictures are diffusers' own (profile "diffusers") but where that has to be called a mistake of its: image-to-image
under PNDM (it repeats a step and skips the next) and LMS (it weighs a history that isn't there), PNDM on a v-predicting
model (it averages v, not noise), a single step on a linspace schedule (it starts at timestep 0), inpainting with a list
of generators (it samples the picture's posterior with the first alone). An argument that would change the picture in a
way we don't have is an error that names it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from sfumato.compat.call_options import CallOptions, Prompts, prompt_pairs
from sfumato.compat.from_pretrained import LoadedPipeline
from sfumato.compat.output import Images, StableDiffusionPipelineOutput
from sfumato.compat.schedulers import (
    DDIMScheduler,
    DDPMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSDEScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    KDPM2AncestralDiscreteScheduler,
    KDPM2DiscreteScheduler,
    LCMScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
from sfumato.diffusion.sampler_info import SAMPLERS
from sfumato.errors import InvalidRequest
from sfumato.pipeline.generation import Generation
from sfumato.pipeline.request import Request

__all__ = [
    "DDIMScheduler",
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSDEScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LCMScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "StableDiffusionImg2ImgPipeline",
    "StableDiffusionInpaintPipeline",
    "StableDiffusionPipeline",
    "StableDiffusionPipelineOutput",
    "UniPCMultistepScheduler",
]

Output = StableDiffusionPipelineOutput | tuple[Images, list[bool] | None]


class _Pipeline(LoadedPipeline):
    def _run(
        self,
        prompt: Prompts | None,
        options: Mapping[str, object],
        *,
        init_image: Image.Image | None = None,
        mask: Image.Image | None = None,
        latents: Tensor | None = None,
        **fields: Any,
    ) -> Output:
        """What the three classes' calls have in common: `options` are those of `CallOptions`, `fields` of `Request`."""
        call = CallOptions.of(options)
        requests = [
            Request(
                prompt=text,
                negative_prompt=negative,
                sampler=self.sampler,
                spacing=self.spacing,
                profile="diffusers",
                # "only used with the DDIMScheduler, ignored in other schedulers" (diffusers)
                eta=call.eta if SAMPLERS[self.sampler].takes_eta else 0.0,
                # diffusers guides only above 1; below, it gives the plain answer too
                guidance_scale=max(call.guidance_scale, 1.0),
                clip_skip=call.clip_skip or 0,
                **fields,
            )
            for text, negative in prompt_pairs(prompt, call.negative_prompt)
        ]
        # autocast would turn our float32 into float16 under the model card's `with autocast("cuda")`
        with torch.autocast(self.device.type, enabled=False):
            generation = self.pipeline.generate(
                requests,
                count=call.num_images_per_prompt,
                init_image=init_image,
                mask=mask,
                generator=self._global_generator() if call.generator is None else call.generator,
                latents=latents,
                output="latents" if call.output_type == "latent" else "images",
            )
        if call.output_type == "latent":
            output = StableDiffusionPipelineOutput(torch.stack(generation.latents).to(self.dtype), None)
        else:
            output = StableDiffusionPipelineOutput(_IMAGES[call.output_type](generation), self._flags(generation))
        return output if call.return_dict else output.to_tuple()

    def _flags(self, generation: Generation) -> list[bool] | None:
        if self.pipeline.safety == "off":
            return None
        return [verdict.status == "flagged" for verdict in generation.verdicts]

    def _global_generator(self) -> torch.Generator:
        """The one that `torch.manual_seed` seeds, as diffusers draws from where no generator is given."""
        if self.device.type == "cuda":
            torch.cuda.init()  # type: ignore[no-untyped-call]
            return torch.cuda.default_generators[self.device.index or torch.cuda.current_device()]
        return torch.default_generator


class StableDiffusionPipeline(_Pipeline):
    """Text to pictures."""

    def __call__(
        self,
        prompt: Prompts | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        *,
        latents: Tensor | None = None,
        guidance_rescale: float = 0.0,
        **options: object,
    ) -> Output:
        """Make pictures of one or several prompts; sizes in pixels default to the model's. `latents` (B, C, h, w) is
        unit noise in the place of the generator's. `options` are those of `CallOptions`. Raises `InvalidRequest`.
        """
        return self._run(
            prompt,
            options,
            latents=latents,
            steps=num_inference_steps,
            width=width,
            height=height,
            guidance_rescale=guidance_rescale,
        )


class StableDiffusionImg2ImgPipeline(_Pipeline):
    """Pictures from a picture and a text."""

    def __call__(
        self,
        prompt: Prompts | None = None,
        image: Image.Image | None = None,
        strength: float = 0.8,
        num_inference_steps: int = 50,
        *,
        init_image: Image.Image | None = None,
        **options: object,
    ) -> Output:
        """Make pictures from a picture: `image` (once called `init_image`) is one PIL picture; its size, rounded down
        to multiples of 8, is the result's. `options` are those of `CallOptions`. Raises `InvalidRequest`.
        """
        return self._run(
            prompt,
            options,
            init_image=_picture("image", image if image is not None else init_image),
            steps=num_inference_steps,
            strength=strength,
        )


class StableDiffusionInpaintPipeline(_Pipeline):
    """A picture's masked part made anew, by an inpainting model or a plain one.

    What the mask keeps comes back as the original's own pixels; diffusers sends it through the autoencoder.
    """

    def __call__(
        self,
        prompt: Prompts | None = None,
        image: Image.Image | None = None,
        mask_image: Image.Image | None = None,
        *,
        init_image: Image.Image | None = None,
        height: int | None = None,
        width: int | None = None,
        strength: float = 1.0,
        num_inference_steps: int = 50,
        latents: Tensor | None = None,
        **options: object,
    ) -> Output:
        """Make a picture's masked part anew: `image` (once called `init_image`) and `mask_image`, white where to paint,
        are PIL pictures, resized to `width` and `height` or the model's size. `latents` and `options` as in
        `StableDiffusionPipeline`. Raises `InvalidRequest`.
        """
        size = self.pipeline.model.size
        return self._run(
            prompt,
            options,
            init_image=_picture("image", image if image is not None else init_image),
            mask=_picture("mask_image", mask_image),
            latents=latents,
            steps=num_inference_steps,
            width=width or size,
            height=height or size,
            strength=strength,
        )


def _picture(name: str, value: object) -> Image.Image:
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if not isinstance(value, Image.Image):
        raise InvalidRequest(f"{name} must be one PIL picture, not {type(value).__name__}")
    return value


def _pil(generation: Generation) -> Images:
    return list(generation.images)


def _numbers(generation: Generation) -> NDArray[np.float32]:
    return np.stack([np.asarray(image, dtype=np.float32) / 255 for image in generation.images])


def _tensor(generation: Generation) -> Tensor:
    return torch.from_numpy(_numbers(generation)).permute(0, 3, 1, 2).contiguous()


_IMAGES = {"pil": _pil, "np": _numbers, "numpy": _numbers, "np.array": _numbers, "pt": _tensor}
