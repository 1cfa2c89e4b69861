"""diffusers' pipelines and schedulers by their names: a script written for it runs with its import line changed.

    from sfumato.compat.diffusers import StableDiffusionPipeline, LMSDiscreteScheduler

The pictures are diffusers' own (profile "diffusers") but where that has to be called a mistake of its: image-to-image
under PNDM (it repeats a step and skips the next) and LMS (it weighs a history that isn't there), PNDM on a v-predicting
model (it averages v, not noise), a single step on a linspace schedule (it starts at timestep 0), inpainting with a list
of generators (it samples the picture's posterior with the first alone). An argument that would change the picture in a
way we don't have is an error that names it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sfumato.compat.loading import LoadedPipeline
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
from sfumato.diffusion.catalog import SAMPLERS
from sfumato.errors import InvalidRequest
from sfumato.pipeline.generate import Generation
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

Prompts = str | Sequence[str]
GeneratorOrList = torch.Generator | Sequence[torch.Generator]
Output = StableDiffusionPipelineOutput | tuple[Images, list[bool] | None]


class _Pipeline(LoadedPipeline):
    def _run(
        self,
        prompt: Prompts,
        *,
        num_inference_steps: int,
        guidance_scale: float,
        negative_prompt: Prompts | None,
        num_images_per_prompt: int,
        eta: float,
        generator: GeneratorOrList | None,
        output_type: str,
        return_dict: bool,
        clip_skip: int | None,
        unknown: dict[str, object],
        init_image: Image.Image | None = None,
        mask: Image.Image | None = None,
        latents: Tensor | None = None,
        **fields: Any,
    ) -> Output:
        """What the three classes' calls have in common; `fields` are further fields of `Request`."""
        refused = [name for name, value in unknown.items() if value is not None]
        if refused:
            raise InvalidRequest(f"the argument {refused[0]!r} is not supported: leave it out")
        if output_type not in ("pil", "np"):
            raise InvalidRequest(f"output_type {output_type!r} is not supported: use 'pil' or 'np'")
        requests = [
            Request(
                prompt=text,
                negative_prompt=negative,
                steps=num_inference_steps,
                sampler=self.sampler,
                spacing=self.spacing,
                profile="diffusers",
                # "only used with the DDIMScheduler, ignored in other schedulers" (diffusers)
                eta=eta if SAMPLERS[self.sampler].takes_eta else 0.0,
                # diffusers guides only above 1; below, it gives the plain answer too
                guidance_scale=max(guidance_scale, 1.0),
                clip_skip=clip_skip or 0,
                **fields,
            )
            for text, negative in _pairs(prompt, negative_prompt)
        ]
        # autocast would turn our float32 into float16 under the model card's `with autocast("cuda")`
        with torch.autocast(self.device.type, enabled=False):
            generation = self.pipeline.generate(
                requests,
                count=num_images_per_prompt,
                init_image=init_image,
                mask=mask,
                generator=self._global_generator() if generator is None else generator,
                latents=latents,
            )
        output = StableDiffusionPipelineOutput(_IMAGES[output_type](generation), self._flags(generation))
        return output if return_dict else output.to_tuple()

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
        prompt: Prompts,
        height: int | None = None,
        width: int | None = None,
        *,
        num_inference_steps: int = 50,
        guidance_scale: float = 7.5,
        negative_prompt: Prompts | None = None,
        num_images_per_prompt: int = 1,
        eta: float = 0.0,
        generator: GeneratorOrList | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        guidance_rescale: float = 0.0,
        clip_skip: int | None = None,
        **unknown: object,
    ) -> Output:
        """One or several prompts; sizes in pixels default to the model's.

        `generator` is one that fills the whole batch or a list with one a picture, `latents` (B, C, h, w) unit noise in
        its place. `output_type` "np" is float32 (B, H, W, 3) from 0 to 1, in steps of 1/255. Raises `InvalidRequest`.
        """
        return self._run(
            prompt,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            negative_prompt=negative_prompt,
            num_images_per_prompt=num_images_per_prompt,
            eta=eta,
            generator=generator,
            output_type=output_type,
            return_dict=return_dict,
            clip_skip=clip_skip,
            unknown=unknown,
            latents=latents,
            width=width,
            height=height,
            guidance_rescale=guidance_rescale,
        )


class StableDiffusionImg2ImgPipeline(_Pipeline):
    """Pictures from a picture and a text."""

    def __call__(
        self,
        prompt: Prompts,
        image: Image.Image | None = None,
        strength: float = 0.8,
        *,
        init_image: Image.Image | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 7.5,
        negative_prompt: Prompts | None = None,
        num_images_per_prompt: int = 1,
        eta: float = 0.0,
        generator: GeneratorOrList | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        clip_skip: int | None = None,
        **unknown: object,
    ) -> Output:
        """`image` (once called `init_image`) is one PIL picture; its size, rounded down to multiples of 8, is the
        result's. Other arguments and errors as in `StableDiffusionPipeline`.
        """
        return self._run(
            prompt,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            negative_prompt=negative_prompt,
            num_images_per_prompt=num_images_per_prompt,
            eta=eta,
            generator=generator,
            output_type=output_type,
            return_dict=return_dict,
            clip_skip=clip_skip,
            unknown=unknown,
            init_image=_picture("image", image if image is not None else init_image),
            strength=strength,
        )


class StableDiffusionInpaintPipeline(_Pipeline):
    """A picture's masked part made anew, by an inpainting model or a plain one.

    What the mask keeps comes back as the original's own pixels; diffusers sends it through the autoencoder.
    """

    def __call__(
        self,
        prompt: Prompts,
        image: Image.Image | None = None,
        mask_image: Image.Image | None = None,
        *,
        init_image: Image.Image | None = None,
        height: int | None = None,
        width: int | None = None,
        strength: float = 1.0,
        num_inference_steps: int = 50,
        guidance_scale: float = 7.5,
        negative_prompt: Prompts | None = None,
        num_images_per_prompt: int = 1,
        eta: float = 0.0,
        generator: GeneratorOrList | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        clip_skip: int | None = None,
        **unknown: object,
    ) -> Output:
        """`image` (once called `init_image`) and `mask_image`, white where to paint, are PIL pictures, resized to
        `width` and `height` or the model's size. Other arguments and errors as in `StableDiffusionPipeline`.
        """
        size = self.pipeline.model.size
        return self._run(
            prompt,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            negative_prompt=negative_prompt,
            num_images_per_prompt=num_images_per_prompt,
            eta=eta,
            generator=generator,
            output_type=output_type,
            return_dict=return_dict,
            clip_skip=clip_skip,
            unknown=unknown,
            init_image=_picture("image", image if image is not None else init_image),
            mask=_picture("mask_image", mask_image),
            latents=latents,
            width=width or size,
            height=height or size,
            strength=strength,
        )


def _pairs(prompt: Prompts, negative: Prompts | None) -> list[tuple[str, str]]:
    """Each prompt with its negative prompt, of which there may be one for all."""
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    if negative is None or isinstance(negative, str):
        return [(text, negative or "") for text in prompts]
    if len(negative) != len(prompts):
        raise InvalidRequest(f"{len(negative)} negative prompts for {len(prompts)} prompts: give one, or one for each")
    return list(zip(prompts, negative, strict=True))


def _picture(name: str, value: object) -> Image.Image:
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if not isinstance(value, Image.Image):
        raise InvalidRequest(f"{name} must be one PIL picture, not {type(value).__name__}")
    return value


def _pil(generation: Generation) -> Images:
    return list(generation.images)


def _numbers(generation: Generation) -> Images:
    return np.stack([np.asarray(image, dtype=np.float32) / 255 for image in generation.images])


_IMAGES = {"pil": _pil, "np": _numbers}
