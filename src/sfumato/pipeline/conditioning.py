"""From prompts to what the UNet attends to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sfumato.diffusion.profiles import PROFILES
from sfumato.errors import InvalidRequest
from sfumato.prompt.encode_prompt import encode
from sfumato.prompt.windows import PromptPlan, align_windows, plan_prompt, warn_of_cut

if TYPE_CHECKING:
    from sfumato.pipeline.model import Model
    from sfumato.pipeline.request import Request

MAX_CONDITIONS = 16
MAX_WINDOWS = 64


@dataclass(frozen=True, slots=True)
class Conditioning:
    """Contexts (B, T, C), the negative prompt's first, then one a condition, and each condition's weight.

    `cut` is the text of each of the B prompts that didn't fit, one string a picture.
    """

    contexts: tuple[Tensor, ...]
    weights: tuple[float, ...]
    cut: tuple[str, ...]


def plan_prompts(model: Model, request: Request) -> tuple[PromptPlan, PromptPlan]:
    """The windows of the prompt and of the negative prompt. Raises `InvalidRequest` for prompts the tokenizer or their
    syntax refuses, for those of more than `MAX_CONDITIONS` parts or `MAX_WINDOWS` windows, and for a `clip_skip` that
    leaves no layer."""
    layers = model.text_encoder.config.layers
    if request.clip_skip >= layers:
        raise InvalidRequest(f"clip_skip {request.clip_skip}: this model's text encoder has {layers} layers")
    prompt = plan_prompt(
        model.tokenizer, request.prompt, syntax=request.prompt_syntax, long_prompts=request.long_prompts
    )
    negative = plan_prompt(
        model.tokenizer,
        request.negative_prompt,
        syntax=request.prompt_syntax,
        long_prompts=request.long_prompts,
        split_and=False,
    )
    _check_length("prompt", prompt)
    _check_length("negative_prompt", negative)
    return prompt, negative


def encode_request(model: Model, request: Request) -> Conditioning:
    """The conditioning of one picture; what is cut from its prompts is logged. Raises as `plan_prompts` does."""
    plans = plan_prompts(model, request)
    for plan in plans:
        warn_of_cut(model.tokenizer, plan)
    prompt, negative = align_windows(model.tokenizer, plans)

    def encoder(clip_skip: int) -> Callable[[Tensor], Tensor]:
        """An encoder of windows (W, T) into hidden states (W, T, width)."""
        # One window at a time: a window's numbers must not depend on how many there are.
        return lambda ids: torch.cat(
            [model.text_encoder(row[None].to(model.device), clip_skip=clip_skip) for row in ids]
        )

    negative_skip = request.clip_skip if PROFILES[request.profile].clips_negative else 0
    encoded = [*encode(negative, encoder(negative_skip)), *encode(prompt, encoder(request.clip_skip))]
    contexts, weights = zip(*encoded, strict=True)
    return Conditioning(contexts, weights[1:], ("".join((*prompt.cut, *negative.cut)),))


def _check_length(name: str, plan: PromptPlan) -> None:
    """Each condition is an answer of the UNet at every step, each window a piece of every context."""
    if len(plan.conditions) > MAX_CONDITIONS:
        raise InvalidRequest(f"{name} joins {len(plan.conditions)} parts with AND: use at most {MAX_CONDITIONS}")
    windows = sum(len(condition.windows.ids) for condition in plan.conditions)
    if windows > MAX_WINDOWS:
        raise InvalidRequest(f"{name} takes {windows} windows of tokens: shorten it to at most {MAX_WINDOWS}")


def stack(conditionings: Sequence[Conditioning]) -> Conditioning:
    """Several pictures' conditionings as one batch; they must have equally many conditions of equal length."""
    return Conditioning(
        tuple(torch.cat(contexts) for contexts in zip(*(c.contexts for c in conditionings), strict=True)),
        conditionings[0].weights,
        tuple(cut for c in conditionings for cut in c.cut),
    )


def stackable(conditionings: Sequence[Conditioning]) -> bool:
    """Whether `stack` can make one batch of the conditionings."""
    shapes = {(tuple(context.shape[1:] for context in c.contexts), c.weights) for c in conditionings}
    return len(shapes) == 1
