"""Inpainting with a plain four-channel model: the known region is put back between steps.

Everything is in σ-space. `mask` (B or 1, 1, h, w) is 1 where to repaint and 0 where to keep, as in diffusers (CompVis'
own masks are the other way round).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from sfumato.choices import check_choice
from sfumato.diffusion.noise import Draw, white_noise
from sfumato.diffusion.profiles import PROFILES


@dataclass(frozen=True, slots=True, kw_only=True)
class Inpaint:
    """What to keep: clean `latents` (B, C, h, w) outside `mask` (B or 1, 1, h, w), and `unit`, which gives their noise.

    `blend_first` puts the known region back before the first model call too, `clean_at_end` after the last step,
    without noise.
    """

    latents: Tensor = field(repr=False)
    mask: Tensor = field(repr=False)
    unit: Callable[[], Tensor] = field(repr=False)
    blend_first: bool
    clean_at_end: bool

    def between(self, x: Tensor, sigma: float) -> Tensor:
        """Replace the known region of x (B, C, h, w) at σ by the original, noised to σ."""
        return self._outside(x, self.latents + sigma * self.unit())

    def before_first(self, x: Tensor, sigma: float) -> Tensor:
        """The state (B, C, h, w) before the first model call, from that of the plan."""
        return self.between(x, sigma) if self.blend_first else x

    def at_end(self, latents: Tensor) -> Tensor:
        """The finished latents (B, C, h, w), from those of the last step."""
        return self._outside(latents, self.latents) if self.clean_at_end else latents

    def _outside(self, x: Tensor, known: Tensor) -> Tensor:
        return self.mask * x + (1.0 - self.mask) * known


def keep_known(profile: str, *, latents: Tensor, mask: Tensor, noise: Tensor, draw: Draw) -> Inpaint:
    """The profile's way of inpainting `latents` and `noise` (B, C, h, w) where `mask` (1, 1, h, w) is 1.

    Raises `InvalidRequest` for an unknown profile. diffusers: after each step, always with the run's starting `noise`,
    and clean at the end. CompVis (`ddim.py`): before each call, with fresh noise from `draw`, and not at the end.
    """
    check_choice("profile", profile, PROFILES)
    fresh = PROFILES[profile].inpaint == "compvis"
    drawn = white_noise(draw, latents)
    return Inpaint(
        latents=latents,
        mask=mask,
        unit=(lambda: drawn(0.0, 0.0)) if fresh else (lambda: noise),
        blend_first=fresh,
        clean_at_end=not fresh,
    )
