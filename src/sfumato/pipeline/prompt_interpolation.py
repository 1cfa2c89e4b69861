"""Walking from one picture to another: frames between two prompts and two starting noises."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor

from sfumato.errors import InvalidRequest
from sfumato.pipeline.batch import draw_start, noise_source, slerp
from sfumato.pipeline.conditioning import Conditioning, encode_request, stackable
from sfumato.pipeline.generation import Generation
from sfumato.pipeline.pipeline import Pipeline
from sfumato.pipeline.request import Request
from sfumato.progress import Cancellation, OnProgress, ignore

MAX_FRAMES = 10_000

_OWN_TO_AN_END = ("prompt", "negative_prompt", "seed")


def check_walk(start: Request, end: Request, frames: int) -> None:
    """Raise `InvalidRequest` unless the two ends agree in everything but prompts and seeds, and start from noise."""
    if not 2 <= frames <= MAX_FRAMES:
        raise InvalidRequest(f"frames {frames} must be from 2, the two ends, to {MAX_FRAMES}")
    if start.init_image is not None or start.mask is not None:
        raise InvalidRequest("init_image and mask don't go with a walk between two pictures: leave them out")
    if start.noise == "generator":
        raise InvalidRequest("noise 'generator' doesn't go with a walk, whose ends are two seeds: use 'cpu' or 'cuda'")
    if start.replace(**{name: getattr(end, name) for name in _OWN_TO_AN_END}) != end:
        raise InvalidRequest("the two ends of a walk may differ in prompts and seed only")


def interpolate(
    pipeline: Pipeline,
    start: Request,
    end: Request,
    frames: int,
    *,
    on_progress: OnProgress = ignore,
    cancellation: Cancellation | None = None,
) -> Iterator[Generation]:
    """The frames of a walk, each as it is finished; the first and the last are what `start` and `end` give alone.

    Between them the starting noise moves on the sphere (Shoemake 1985), so that it stays noise, and the prompts'
    contexts move in a straight line, as attention is linear in them. What a sampler draws while it runs is the start's
    seed's until the last frame. Raises `InvalidRequest` as `check_walk` does,
    and for prompts that don't take equally many windows.
    """
    check_walk(start, end, frames)
    start, end = pipeline.resolve(start), pipeline.resolve(end)
    with torch.inference_mode():
        prompts = encode_request(pipeline.model, start), encode_request(pipeline.model, end)
    if not stackable(prompts):
        raise InvalidRequest("the two prompts don't have equally many parts or windows: make them of one kind")
    noises = _noise(pipeline, start), _noise(pipeline, end)
    for i in range(frames):
        weight = i / (frames - 1)
        yield pipeline.generate(
            start if i < frames - 1 else end,
            conditioning=_between(*prompts, weight),
            latents=_slerp_exact(*noises, weight),
            on_progress=_of_frame(on_progress, i, frames),
            cancellation=cancellation,
        )


def _noise(pipeline: Pipeline, request: Request) -> Tensor:
    """The unit noise (1, C, h, w) that the request starts from alone."""
    assert request.width and request.height
    config = pipeline.model.autoencoder.config
    shape = (1, config.latent_channels, request.height // config.factor, request.width // config.factor)
    draw, _ = noise_source((request,), None)
    return draw_start((request,), draw, shape)


def _slerp_exact(a: Tensor, b: Tensor, weight: float) -> Tensor:
    """`slerp`, but without rounding at the two ends."""
    return a if weight == 0.0 or a.equal(b) else b if weight == 1.0 else slerp(a, b, weight)


def _between(a: Conditioning, b: Conditioning, weight: float) -> Conditioning:
    if weight == 1.0:
        return b
    contexts = tuple(torch.lerp(x, y, weight) for x, y in zip(a.contexts, b.contexts, strict=True))
    return Conditioning(contexts, a.weights, a.cut)


def _of_frame(on_progress: OnProgress, frame: int, frames: int) -> OnProgress:
    """Progress of one frame as progress of picture `frame` of `frames`."""

    return lambda event: on_progress(dataclasses.replace(event, image=frame, images=frames))
