"""What is decided about requests before they run: which can run as one batch, and the plan of each one's passes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sfumato.diffusion.sampling import Plan, plan
from sfumato.pipeline.model import Model
from sfumato.pipeline.request import Request


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedRequest:
    """A resolved request and the plan of each of its passes: one, or two with `upscale` above 1."""

    request: Request
    plans: tuple[Plan, ...]


def batch_key(request: Request) -> Request:
    """The part of a request that others must agree in to run in one batch with it."""
    return request.replace(prompt="", negative_prompt="", seed=0, variation_seed=None)


def plan_requests(model: Model, requests: Iterable[Request]) -> list[PlannedRequest]:
    """Plan resolved requests, those that could run together once. Raises `InvalidRequest` for what the model's
    samplers can't do."""
    known: dict[Request, tuple[Plan, ...]] = {}
    planned = []
    for request in requests:
        key = batch_key(request)
        if key not in known:
            known[key] = _passes(model, key)
        planned.append(PlannedRequest(request=request, plans=known[key]))
    return planned


def _passes(model: Model, request: Request) -> tuple[Plan, ...]:
    strengths = [None if request.init_image is None else request.strength]
    strengths += [request.upscale_strength] * (request.upscale > 1.0)
    return tuple(
        plan(
            model.noise_schedule,
            sampler=request.sampler,
            steps=request.steps,
            spacing=request.spacing,
            profile=request.profile,
            strength=strength,
            eta=request.eta,
            rtol=request.rtol,
            atol=request.atol,
        )
        for strength in strengths
    )
