"""One batch of pictures, from requests to decoded tensors. A CPU runs each picture by itself (docs/numerics.md)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from sfumato.diffusion import sampling
from sfumato.diffusion.inpaint import Inpaint, keep_known
from sfumato.diffusion.noise import Draw, generator_noise, seeded_noise, seeds_from
from sfumato.diffusion.profiles import follows_path
from sfumato.errors import InvalidRequest
from sfumato.pictures.pixels import mask_to_latents
from sfumato.pipeline.conditioning import Conditioning
from sfumato.pipeline.denoising import predictor
from sfumato.pipeline.model import Model
from sfumato.pipeline.nan_guard import guarding
from sfumato.pipeline.request import Request, upscaled

Generators = torch.Generator | Sequence[torch.Generator]


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """What a batch starts from beside its prompts: a picture (1, 3, H, W) in [-1, 1] with a mask (1, 1, H, W), 1 to
    repaint; or unit noise `latents` (B, C, h, w), in the place of what the seeds would draw for the first pass."""

    picture: Tensor | None = None
    mask: Tensor | None = None
    latents: Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Pictures that run together: their requests agree in everything but prompts and seeds, sizes resolved.

    `plans` are those of its passes, one or two. `one_generator`: a single one draws for all of them. Then they share
    the sample of a picture's posterior too, as they do in diffusers.
    """

    model: Model
    requests: tuple[Request, ...]
    plans: tuple[sampling.Plan, ...]
    conditioning: Conditioning
    inputs: Inputs
    draw: Draw
    brownian_seeds: tuple[int, ...]
    one_generator: bool = False

    @property
    def request(self) -> Request:
        """The settings all requests of the batch share."""
        return self.requests[0]

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int, int]:
        """(B, C, h, w) for pictures of this many pixels."""
        config = self.model.autoencoder.config
        return (len(self.requests), config.latent_channels, height // config.factor, width // config.factor)


def noise_source(requests: Sequence[Request], generator: Generators | None) -> tuple[Draw, tuple[int, ...]]:
    """Where a batch's numbers come from, and the seeds of its Brownian paths."""
    if generator is None:
        seeds = tuple(request.seed for request in requests)
        return seeded_noise(requests[0].noise, seeds), seeds
    generators = [generator] if isinstance(generator, torch.Generator) else list(generator)
    single = len(generators) == 1
    draw = generator_noise(generators[0] if single else generators)
    if not follows_path(requests[0].sampler, requests[0].profile):
        return draw, ()  # seeds that nobody needs would move the generators on, and the starting noise with them
    seeds = (
        seeds_from(generators[0], len(requests)) if single else tuple(s for g in generators for s in seeds_from(g, 1))
    )
    return draw, seeds


OnDecoded = Callable[[int], None]
"""Told before the pictures of a pass are decoded, with 0, and afterwards, with how many they are."""


def sample_latents(batch: Batch, on_step: sampling.OnStep, on_decoded: OnDecoded) -> Tensor:
    """The final scaled latents (B, C, h, w) float32 of a batch.

    With `upscale` above 1 the picture is decoded, enlarged and gone over again from `upscale_strength` of the noise.
    """
    request, inputs = batch.request, batch.inputs
    assert request.width and request.height
    strength = None if inputs.picture is None else request.strength
    latents = _sample(batch, batch.plans[0], inputs.picture, inputs.mask, strength, on_step, inputs.latents)
    if request.upscale == 1.0:
        return latents
    height, width = (upscaled(side, request.upscale) for side in (request.height, request.width))
    enlarged = _enlarged(_decode(batch, latents, on_decoded), (height, width))
    mask = None if inputs.mask is None else interpolate(inputs.mask, size=(height, width))
    return _sample(batch, batch.plans[1], enlarged, mask, request.upscale_strength, on_step)


def decode_pictures(batch: Batch, latents: Tensor, on_decoded: OnDecoded) -> Tensor:
    """The pictures (B, 3, H, W), about [-1, 1], of final latents (B, C, h, w); what a mask keeps is the original's own
    pixels."""
    images = _decode(batch, latents, on_decoded)
    picture, mask = batch.inputs.picture, batch.inputs.mask
    if picture is None or mask is None:
        return images
    if batch.request.upscale > 1.0:
        height, width = images.shape[2:]
        picture, mask = _enlarged(picture, (height, width)), interpolate(mask, size=(height, width))
    return torch.where(mask.to(images.device) > 0.5, images, picture.to(images))


def _enlarged(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Pictures (B, 3, H, W) in [-1, 1] at `size`, height before width."""
    return interpolate(images, size=size, mode="bicubic", antialias=True).clamp(-1, 1)


def _decode(batch: Batch, latents: Tensor, on_decoded: OnDecoded) -> Tensor:
    on_decoded(0)
    images = decode(batch.model, latents)
    on_decoded(len(images))
    return images


def _sample(
    batch: Batch,
    plan: sampling.Plan,
    picture: Tensor | None,
    mask: Tensor | None,
    strength: float | None,
    on_step: sampling.OnStep,
    given: Tensor | None = None,
) -> Tensor:
    """Scaled latents (B, C, h, w) of one pass; `given` is its unit noise where the caller has some."""
    request, model = batch.request, batch.model
    height, width = (request.height, request.width) if picture is None else picture.shape[2:]
    assert width and height
    shape = batch.latent_shape(width, height)
    pure = mask is not None and strength == 1.0  # diffusers: inpainting at full strength starts from noise alone
    # The order of draws is diffusers': the picture's posterior, the starting noise, the masked picture's posterior.
    original = None
    if picture is not None and not (pure and model.inpaints):  # there nothing would look at it
        original = _encode(batch, picture)
    noise = _starting_noise(batch, shape, given).to(model.device)
    x = sampling.enter(plan, noise, None if pure else original)
    inpaint: Inpaint | None = None
    extra: Tensor | None = None
    if mask is not None and picture is not None:
        latent_mask = mask_to_latents(mask, shape[3], shape[2]).to(model.device)
        if model.inpaints:
            masked = _encode(batch, picture * (mask < 0.5))
            extra = torch.cat([latent_mask.expand(len(batch.requests), -1, -1, -1), masked], dim=1)
        elif original is not None:
            inpaint = keep_known(request.profile, latents=original, mask=latent_mask, noise=noise, draw=batch.draw)
    step_noise = sampling.step_noise(plan, batch.draw, batch.brownian_seeds, x) if plan.draws_noise else None
    with guarding("the UNet", model.unet, model.device) as check:
        return sampling.run(
            plan,
            predictor(model, batch.conditioning, request, extra, check),
            x,
            prediction=model.prediction,
            noise=step_noise,
            on_step=on_step,
            inpaint=inpaint,
        )


def _starting_noise(batch: Batch, shape: tuple[int, ...], given: Tensor | None) -> Tensor:
    """Unit noise (B, C, h, w) float32 on the CPU: given, or each picture's own."""
    if given is None:
        return draw_start(batch.requests, batch.draw, shape)
    if tuple(given.shape) != shape:
        raise InvalidRequest(f"latents of shape {tuple(given.shape)} were given, this request needs {shape}")
    if batch.request.noise != "generator":
        # A seed's next numbers must not repeat those it would have started with, which may be the ones given. A
        # caller's generator isn't moved on: diffusers doesn't either.
        batch.draw(shape)
    return given.float()


def draw_start(requests: Sequence[Request], draw: Draw, shape: tuple[int, ...]) -> Tensor:
    """Unit noise (B, C, h, w) float32 on the CPU: the next of each picture's own, moved towards its variation's."""
    noise = draw(shape)
    strength = requests[0].variation_strength
    if strength == 0.0:
        return noise
    seeds = [r.seed if r.variation_seed is None else r.variation_seed for r in requests]
    others = seeded_noise(requests[0].noise, seeds)(shape)
    return torch.stack([slerp(a, b, strength) for a, b in zip(noise, others, strict=True)])


def slerp(a: Tensor, b: Tensor, weight: float) -> Tensor:
    """Spherical interpolation of two tensors of one shape (Shoemake 1985), linear where they are nearly parallel."""
    cosine = torch.dot((a / a.norm()).flatten(), (b / b.norm()).flatten()).clamp(-1, 1)
    if cosine.abs() > 0.9995:
        return torch.lerp(a, b, weight)
    angle = torch.acos(cosine)
    return (torch.sin((1 - weight) * angle) * a + torch.sin(weight * angle) * b) / torch.sin(angle)


def _encode(batch: Batch, picture: Tensor) -> Tensor:
    """Scaled latents (B, C, h, w) of the picture (1, 3, H, W) that all of a batch start from."""
    count = len(batch.requests)
    latents = encode(batch.model, picture, batch.draw, 1 if batch.one_generator else count)
    return latents.expand(count, -1, -1, -1)


def encode(model: Model, picture: Tensor, draw: Draw, count: int = 1) -> Tensor:
    """Scaled latents (count, C, h, w) of a picture (1 or count, 3, H, W) in [-1, 1]: a sample of the posterior each."""
    pixels = picture.to(model.device, model.dtype)
    with guarding("the autoencoder", model.autoencoder, model.device) as check:
        posterior = model.engine.encode(pixels)
        check(posterior.mean, lambda: model.autoencoder.encode(pixels))
    noise = draw((count, *posterior.mean.shape[1:])).to(posterior.mean)
    return posterior.sample(noise).float() * model.autoencoder.config.scaling_factor


def decode(model: Model, latents: Tensor) -> Tensor:
    """Scaled latents (B, C, h, w) → pictures (B, 3, H, W) float32, about [-1, 1]; one by one, to bound the memory."""
    unscaled = (latents / model.autoencoder.config.scaling_factor).to(model.dtype)

    with guarding("the autoencoder", model.autoencoder, model.device) as check:

        def decode_one(one: Tensor) -> Tensor:
            image = model.engine.decode(one)
            check(image, lambda: model.autoencoder.decode(one))
            return image.float()

        return torch.cat([decode_one(one) for one in unscaled.chunk(len(unscaled))])
