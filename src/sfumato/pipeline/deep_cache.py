"""The UNet's calls of one pass as a request wants them: whole, or with what `engines.shortcuts` can leave out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sfumato.engines.shortcuts import Shortcuts, layers_up
from sfumato.errors import InvalidRequest
from sfumato.nn.token_merging import Merging

if TYPE_CHECKING:
    from sfumato.pipeline.model import Model
    from sfumato.pipeline.request import Request


def shortcuts_wanted(request: Request) -> tuple[str, ...]:
    """The fields by which a request leaves something out of the UNet's calls."""
    neutral = {"cache_interval": 1, "token_merging": 0.0}
    return tuple(name for name, value in neutral.items() if getattr(request, name) > value)


def check_shortcuts(model: Model, request: Request) -> None:
    """Raise `InvalidRequest` for shortcuts that this model or its engine doesn't have."""
    wanted = shortcuts_wanted(request)
    if wanted and model.engine.approximate is None:
        raise InvalidRequest(
            f"{wanted[0]} {getattr(request, wanted[0])}: engine {model.engine.name} can leave nothing out: take "
            "another, such as eager or winograd, or the preset fast or exact",
            field=wanted[0],
        )
    layers = layers_up(model.unet)
    if request.cache_interval > 1 and request.cache_depth >= layers:
        raise InvalidRequest(
            f"cache_depth {request.cache_depth}: this model's UNet has {layers} layers on the way up: use at most "
            f"{layers - 1}",
            field="cache_depth",
        )


class Forward:
    """One forward for some of a pass's conditions. Keeps the deep features of each condition from whole call to call.

    A call is whole when it is the turn of one, or when a condition asked for has nothing kept (guidance was off).
    """

    def __init__(self, model: Model, request: Request) -> None:
        self._engine, self._request = model.engine, request
        self._kept: dict[int, Tensor] = {}
        self._since_whole = 0

    def __call__(self, latents: Tensor, t: float, context: Tensor, which: tuple[int, ...]) -> Tensor:
        """latents (len(which)·B, C, h, w) and context, the conditions one after another → the raw answers."""
        timesteps = torch.full((len(latents),), t, dtype=torch.float32, device=latents.device)
        request, approximate = self._request, self._engine.approximate
        if approximate is None or not shortcuts_wanted(request):
            return self._engine.denoise(latents, timesteps, context)
        merging = Merging(ratio=request.token_merging, seed=round(t)) if request.token_merging else None
        if request.cache_interval == 1:
            return approximate(latents, timesteps, context, Shortcuts(merging=merging))
        if self._since_whole % request.cache_interval == 0 or not self._kept.keys() >= set(which):
            self._kept.clear()
            self._since_whole = 0
        self._since_whole += 1
        deep = torch.cat([self._kept[i] for i in which]) if self._kept else None
        shortcuts = Shortcuts(merging=merging, depth=request.cache_depth, deep=deep)
        answer = approximate(latents, timesteps, context, shortcuts)
        if deep is None:
            assert shortcuts.deep is not None
            self._kept.update(zip(which, shortcuts.deep.chunk(len(which)), strict=True))
        return answer
