"""One call of the UNet: everything that stands between a sampler and the engine, put together in one place.

A sampler (`diffusion.sampling.run`) asks its denoiser for x0 at σ, which counts and asks `predictor`'s result for the
model's answer. From there: NaN guard → guidance → DeepCache → `Engine.unet`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from sfumato.diffusion.denoiser import Predict
from sfumato.diffusion.guidance import guide
from sfumato.engines.engine import Engine, eager
from sfumato.models.unet_inputs import UNetInputs
from sfumato.pipeline.conditioning import Conditioning
from sfumato.pipeline.deep_cache import DeepCache, shortcuts_wanted
from sfumato.pipeline.model import Model
from sfumato.pipeline.nan_guard import Check
from sfumato.pipeline.request import Request


def predictor(
    model: Model, conditioning: Conditioning, request: Request, extra_channels: Tensor | None, check: Check
) -> Predict:
    """The guided UNet as the samplers of one pass call it, each answer checked.

    `extra_channels` (B, 5, h, w) are an inpainting UNet's mask and masked latents. What is predicted is for x_in
    (B, C, h, w) and as large, float32.
    """
    predict = _guided(model.engine, conditioning, request, extra_channels)
    # A layer that makes NaN is looked for in the modules themselves: other engines don't call them.
    modules = eager(model.unet, model.autoencoder)

    def guarded(x_in: Tensor, t: float, sigma: float) -> Tensor:
        """Predict for x_in (B, C, h, w), and check the answer."""
        answer = predict(x_in, t, sigma)
        check(answer, lambda: _guided(modules, conditioning, request, extra_channels)(x_in, t, sigma))
        return answer

    return guarded


def _guided(engine: Engine, conditioning: Conditioning, request: Request, extra_channels: Tensor | None) -> Predict:
    scale = request.guidance_scale
    assert scale is not None, "the request was not resolved"
    deep_cache = DeepCache(request)

    @cache  # the same tensor each time: an engine knows it again
    def context(which: tuple[int, ...]) -> Tensor:
        """The contexts (k·B, T, width) of the k conditions `which`."""
        return torch.cat([conditioning.contexts[i] for i in which])

    def call(x_in: Tensor, t: float, which: tuple[int, ...], factors: Sequence[float] | None = None) -> Tensor:
        """The UNet's answers under the conditions numbered `which`, (len(which)·B, C, h, w), or with `factors` what
        guidance makes of them, (B, C, h, w); float32."""
        shortcuts = deep_cache.next(t, which)
        inputs = UNetInputs(
            latents=x_in,
            timesteps=torch.full((1,), t, dtype=torch.float32, device=x_in.device),
            context=context(which),
            extra_channels=extra_channels,
            shortcuts=shortcuts,
            factors=None if factors is None else tuple(factors),
        )
        answer = engine.unet(inputs).float()
        deep_cache.keep(which, shortcuts)
        return answer

    return guide(
        lambda x_in, t, which: call(x_in, t, which).chunk(len(which)),
        scale=scale,
        weights=conditioning.weights,
        rescale=request.guidance_rescale,
        interval=request.guidance_interval,
        guided=call if engine.guides and not shortcuts_wanted(request) else None,
    )
