"""Classifier-free guidance: one model answer from several, each under its own condition."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from sfumato.diffusion.denoiser import Predict

Answers = Callable[[Tensor, float, tuple[int, ...]], Sequence[Tensor]]
"""`answers(x_in, t, which)`: the model's raw answers for x_in (B, C, h, w) at t under the conditions numbered `which`
(0 the unconditional or negative one, 1… the prompts), in that order, each (B, C, h, w): one forward for all of them."""

Guided = Callable[[Tensor, float, tuple[int, ...], Sequence[float]], Tensor]
"""`guided(x_in, t, which, factors)`: `combined` of those answers, where an engine computes both in one go."""


def guide(
    answers: Answers,
    *,
    scale: float,
    weights: Sequence[float] = (1.0,),
    rescale: float = 0.0,
    interval: tuple[float, float] | None = None,
    guided: Guided | None = None,
) -> Predict:
    """A `predict` with guidance: u + scale · Σ wᵢ (cᵢ − u) (Ho & Salimans 2022; several cᵢ: Liu et al. 2022, eq. 11).

    `weights` are those of the conditions 1…; `rescale` is φ of Lin et al. 2023, eq. 15 and 16, on the model's raw
    answer; outside the closed range `interval` of σ the scale is 1 (Kynkäänniemi et al. 2024). A condition whose
    coefficient comes out as 0 isn't evaluated: at scale 1 with one prompt that is the unconditional one. `guided` is
    called in the place of `answers` where nothing is rescaled.
    """

    def predict(x_in: Tensor, t: float, sigma: float) -> Tensor:
        """Answer x_in (B, C, h, w) at timestep t as one model would, of its shape."""
        inside = interval is None or interval[0] <= sigma <= interval[1]
        strength = scale if inside else 1.0
        factors = [strength * weight for weight in weights]
        prompts = tuple(i + 1 for i, factor in enumerate(factors) if factor != 0.0)
        alone = len(prompts) == 1 and sum(factors) == 1.0
        which, wanted = (prompts, []) if alone else ((0, *prompts), [factors[i - 1] for i in prompts])
        rescaling = rescale != 0.0 and inside and not alone
        if guided is not None and not rescaling:
            return guided(x_in, t, which, wanted)
        found = answers(x_in, t, which)
        whole = combined(found, wanted)
        return _rescaled(whole, combined(found, [weights[i - 1] for i in prompts]), rescale) if rescaling else whole

    return predict


def combined(answers: Sequence[Tensor], factors: Sequence[float | Tensor]) -> Tensor:
    """u + Σ fᵢ (cᵢ − u): the first answer is u, and each other has its factor, a number or a tensor of no dimension."""
    unconditional, *conditional = answers
    whole = unconditional
    for factor, answer in zip(factors, conditional, strict=True):
        whole = whole + factor * (answer - unconditional)
    return whole


def _rescaled(guided: Tensor, plain: Tensor, phi: float) -> Tensor:
    """Bring each picture's standard deviation back to the unguided one's, by the fraction φ. std over C, h, w."""
    over = tuple(range(1, guided.ndim))
    ratio = plain.std(dim=over, keepdim=True) / guided.std(dim=over, keepdim=True)
    return guided * (phi * ratio + (1.0 - phi))
