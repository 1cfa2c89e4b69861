"""Classifier-free guidance: one model answer from several, each under its own condition."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from sfumato.diffusion.denoiser import Predict

Answers = Callable[[Tensor, float, tuple[int, ...]], Sequence[Tensor]]
"""`answers(x_in, t, which)`: the model's raw answers for x_in (B, C, h, w) at t under the conditions numbered `which`
(0 the unconditional or negative one, 1… the prompts), in that order, each (B, C, h, w): one forward for all of them."""


def guide(
    answers: Answers,
    *,
    scale: float,
    weights: Sequence[float] = (1.0,),
    rescale: float = 0.0,
    interval: tuple[float, float] | None = None,
) -> Predict:
    """A `predict` with guidance: u + scale · Σ wᵢ (cᵢ − u) (Ho & Salimans 2022; several cᵢ: Liu et al. 2022, eq. 11).

    `weights` are those of the conditions 1…; `rescale` is φ of Lin et al. 2023, eq. 15 and 16, on the model's raw
    answer; outside the closed range `interval` of σ the scale is 1 (Kynkäänniemi et al. 2024). A condition whose
    coefficient comes out as 0 isn't evaluated: at scale 1 with one prompt that is the unconditional one.
    """

    def predict(x_in: Tensor, t: float, sigma: float) -> Tensor:
        inside = interval is None or interval[0] <= sigma <= interval[1]
        strength = scale if inside else 1.0
        factors = [strength * weight for weight in weights]
        prompts = tuple(i + 1 for i, factor in enumerate(factors) if factor != 0.0)
        if len(prompts) == 1 and sum(factors) == 1.0:
            return answers(x_in, t, prompts)[0]
        unconditional, *conditional = answers(x_in, t, (0, *prompts))
        directions = [answer - unconditional for answer in conditional]
        guided = unconditional.clone()
        for i, direction in zip(prompts, directions, strict=True):
            guided += factors[i - 1] * direction
        if rescale == 0.0 or not inside:
            return guided
        plain = unconditional.clone()
        for i, direction in zip(prompts, directions, strict=True):
            plain += weights[i - 1] * direction
        return _rescaled(guided, plain, rescale)

    return predict


def _rescaled(guided: Tensor, plain: Tensor, phi: float) -> Tensor:
    """Bring each picture's standard deviation back to the unguided one's, by the fraction φ. std over C, h, w."""
    over = tuple(range(1, guided.ndim))
    ratio = plain.std(dim=over, keepdim=True) / guided.std(dim=over, keepdim=True)
    return guided * (phi * ratio + (1.0 - phi))
