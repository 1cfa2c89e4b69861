"""DeepCache and token merging in one pass: which calls of the UNet are whole, and what the others leave out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sfumato.errors import InvalidRequest
from sfumato.models.unet_inputs import Shortcuts
from sfumato.nn.token_merging import Merging
from sfumato.pipeline.model import Model
from sfumato.pipeline.request import Request


def shortcuts_wanted(request: Request) -> tuple[str, ...]:
    """The fields by which a request leaves something out of the UNet's calls."""
    neutral = {"cache_interval": 1, "token_merging": 0.0}
    return tuple(name for name, value in neutral.items() if getattr(request, name) > value)


def check_shortcuts(model: Model, request: Request) -> None:
    """Raise `InvalidRequest` for shortcuts that this model or its engine doesn't have."""
    wanted = shortcuts_wanted(request)
    if wanted and not model.engine.shortens:
        raise InvalidRequest(
            f"{wanted[0]} {getattr(request, wanted[0])}: engine {model.engine.name} can leave nothing out: take "
            "another, such as eager or winograd, or the preset fast or exact",
            field=wanted[0],
        )
    layers = model.unet.layers_up
    if request.cache_interval > 1 and request.cache_depth >= layers:
        raise InvalidRequest(
            f"cache_depth {request.cache_depth}: this model's UNet has {layers} layers on the way up: use at most "
            f"{layers - 1}",
            field="cache_depth",
        )


class DeepCache:
    """The shortcuts of a pass's calls, one after another, and the deep features that each condition keeps between them.

    A call is whole when it is the turn of one, or when a condition asked for has nothing kept (guidance was off).
    """

    def __init__(self, request: Request) -> None:
        self._request, self._wanted = request, bool(shortcuts_wanted(request))
        self._kept: dict[int, Tensor] = {}
        self._since_whole = 0

    def next(self, t: float, which: Sequence[int]) -> Shortcuts | None:
        """What the next call, at timestep t under the conditions numbered `which`, leaves out; None for nothing."""
        request = self._request
        if not self._wanted:
            return None
        merging = Merging(ratio=request.token_merging, seed=round(t)) if request.token_merging else None
        if request.cache_interval == 1:
            return Shortcuts(merging=merging)
        if self._since_whole % request.cache_interval == 0 or not self._kept.keys() >= set(which):
            self._kept.clear()
            self._since_whole = 0
        self._since_whole += 1
        deep = torch.cat([self._kept[i] for i in which]) if self._kept else None
        return Shortcuts(merging=merging, depth=request.cache_depth, deep=deep)

    def keep(self, which: Sequence[int], shortcuts: Shortcuts | None) -> None:
        """Keep the deep features that a whole call left in its `shortcuts`."""
        if shortcuts is not None and shortcuts.deep is not None and not self._kept:
            self._kept.update(zip(which, shortcuts.deep.chunk(len(which)), strict=True))
