"""How long a picture will take, from those made lately."""

from __future__ import annotations

from sfumato.pipeline.request import Request
from sfumato.serve.server_settings import UNSAID_SIDE

_WEIGHT = 0.3  # of the newest
_FIRST_GUESS = 0.1  # seconds a step: until something is known, and wrong for most machines

_Kind = tuple[str, int | None, int | None]


class Estimate:
    """Seconds a step, averaged over each model and size, the newest counting most."""

    def __init__(self) -> None:
        self._step: dict[_Kind, float] = {}
        self._any: float | None = None

    def learn(self, request: Request, seconds: float) -> None:
        """Take in how long a picture took."""
        step = seconds / request.steps
        kind = _kind(request)
        self._step[kind] = _mixed(self._step.get(kind), step)
        self._any = _mixed(self._any, step)

    def picture(self, request: Request) -> float:
        """Seconds a picture of that request will take."""
        return request.steps * self._step.get(_kind(request), _FIRST_GUESS if self._any is None else self._any)


def _kind(request: Request) -> _Kind:
    return request.model, request.width or UNSAID_SIDE, request.height or UNSAID_SIDE


def _mixed(old: float | None, new: float) -> float:
    return new if old is None else (1 - _WEIGHT) * old + _WEIGHT * new
