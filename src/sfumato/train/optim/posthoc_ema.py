"""The averaging length chosen after the run: snapshots of power averages, and any other average from them.

    RUN/snapshots/step-00001200.safetensors     the averages of all `run.ema_sigma_rels` after 1,200 steps

Karras et al. 2024, "Analyzing and Improving the Training Dynamics of Diffusion Models", section 3.2 and appendix C.3.
A snapshot is a sum over the steps' weights, and so is the average that was not kept: the combination of snapshots whose
profile is nearest to its profile is found by least squares, from the profiles alone.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sfumato.errors import CheckpointError, InvalidConfig, ModelNotFound
from sfumato.files import remove_leftovers
from sfumato.train.checkpoints import Saved, read_checkpoint, write_checkpoint
from sfumato.train.optim.ema import PowerEma
from sfumato.train.optim.power_profile import gamma_of
from sfumato.train.run_folder import SNAPSHOTS
from sfumato.train.train_state import power_prefix, within

logger = logging.getLogger("sfumato")

_KEY = "ema_sigma_rels"
_BUFFER = "buffer."
_FAR = 0.1  # a profile error that is worth a warning


class Snapshots:
    """A run's snapshots, those of steps beyond `after` dropped: they will be written again."""

    def __init__(self, run: Path, *, after: int) -> None:
        self.folder = run / SNAPSHOTS
        for step, path in _paths(run).items():
            if step > after:
                path.unlink()
        remove_leftovers(self.folder)

    def write(self, step: int, tensors: Mapping[str, Tensor], sigma_rels: Sequence[float]) -> None:
        """Write what `snapshot_tensors` named, of any shape, whole and on the CPU. It is on the disk on return. Raises
        `OutputError`."""
        write_checkpoint(self.folder, step=step, tensors=tensors, config={_KEY: list(sigma_rels)}, score=None)


def snapshot_tensors(averages: Sequence[PowerEma]) -> dict[str, Tensor]:
    """A snapshot of `averages` by name, of any shape: the parameters of each, and the buffers, which aren't
    averaged."""
    tensors: dict[str, Tensor] = {}
    for average in averages:
        parameters = {name for name, _ in average.module.named_parameters(remove_duplicate=False)}
        for name, tensor in average.module.state_dict().items():
            tensors[(power_prefix(average.sigma_rel) if name in parameters else _BUFFER) + name] = tensor
    return tensors


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconstructed:
    """An average after `step`, by the names in the module; buffers are those of that step. `profile_error` is the
    distance of the profile it has from that it should have, relative to the latter's length."""

    step: int
    weights: Mapping[str, Tensor]
    profile_error: float


def reconstruct(run: Path, sigma_rel: float, step: int | None = None) -> Reconstructed:
    """The power average of any relative width as it was after `step`, one of the snapshots' (else the newest's).

    Sums are in float64, 8 bytes a parameter. Warns where the snapshots can't tell that width well. Raises
    `InvalidConfig` where there is no such width or step, `ModelNotFound` where the run has no snapshots, and
    `CheckpointError` where one is damaged.
    """
    gamma_of(sigma_rel)
    paths = _paths(run)
    if not paths:
        raise ModelNotFound(f"{run}: no snapshots of averages there: they are kept of runs with run.ema_sigma_rels")
    end = max(paths) if step is None else step
    if end not in paths:
        raise InvalidConfig(f"step {step}: no snapshot of it; there are {', '.join(map(str, paths))}")
    last = read_checkpoint(paths[end])
    sigma_rels = _sigma_rels(last)
    used = [at for at in paths if at <= end]
    kept = [(float(at), width) for at in used for width in sigma_rels]
    found, error = coefficients(kept, float(end), sigma_rel)
    if error > _FAR:
        logger.warning(
            "sigma_rel = %s is too far from what %d snapshots of %s tell (profile error %.0f %%): choose one nearer",
            sigma_rel, len(used), ", ".join(map(str, sigma_rels)), 100.0 * error,
        )  # fmt: skip
    sums: dict[str, Tensor] = {}
    of_step = dict(zip(used, found.view(len(used), len(sigma_rels)).tolist(), strict=True))
    for at, shares in of_step.items():
        saved = read_checkpoint(paths[at])
        if _sigma_rels(saved) != sigma_rels or saved.tensors.keys() != last.tensors.keys():
            raise CheckpointError(f"{paths[at]}: of another run than {paths[end].name}")
        for width, share in zip(sigma_rels, shares, strict=True):
            for name, tensor in within(saved.tensors, power_prefix(width)).items():
                total = sums.setdefault(name, torch.zeros(tensor.shape, dtype=torch.float64))
                total.add_(tensor, alpha=share)
    weights = within(last.tensors, _BUFFER)
    for name, tensor in within(last.tensors, power_prefix(sigma_rels[0])).items():
        weights[name] = sums.pop(name).to(tensor.dtype)
    return Reconstructed(step=end, weights=weights, profile_error=error)


def coefficients(kept: Sequence[tuple[float, float]], step: float, sigma_rel: float) -> tuple[Tensor, float]:
    """Shares of N kept averages in the wanted one after `step`, of shape (N,) and sum 1; and the profile error.

    `kept` has the step and the sigma_rel of each. Algorithm 3: the normal equations of the profiles, in float64.
    """
    ends = torch.tensor([end for end, _ in kept], dtype=torch.float64)
    gammas = torch.tensor([gamma_of(width) for _, width in kept], dtype=torch.float64)
    end, gamma = torch.tensor(step, dtype=torch.float64), torch.tensor(gamma_of(sigma_rel), dtype=torch.float64)
    products = inner_products(ends[:, None], gammas[:, None], ends, gammas)
    wanted = inner_products(ends, gammas, end, gamma)
    # gelsd takes what is nearly singular, too, as snapshots close to each other are
    shares = torch.linalg.lstsq(products, wanted[:, None], driver="gelsd").solution[:, 0]
    shares = shares / shares.sum()
    square = float(inner_products(end, gamma, end, gamma))
    distance = square - 2.0 * float(shares @ wanted) + float(shares @ products @ shares)
    return shares, math.sqrt(max(distance, 0.0) / square)


def inner_products(ends: Tensor, gammas: Tensor, other_ends: Tensor, other_gammas: Tensor) -> Tensor:
    """∫ p q of profiles p(t) = (γ+1) t^γ / T^(γ+1) on 0 … T (equation 151), of shapes that broadcast."""
    shorter = torch.minimum(ends, other_ends)
    power = (shorter / ends) ** gammas * (shorter / other_ends) ** other_gammas
    scale = (gammas + 1.0) * (other_gammas + 1.0) / (gammas + other_gammas + 1.0)
    return scale * power * shorter / (ends * other_ends)


def _paths(run: Path) -> dict[int, Path]:
    """The snapshots by step, in order."""
    found = sorted((run / SNAPSHOTS).glob("step-*.safetensors"))
    return {int(path.stem.removeprefix("step-")): path for path in found}


def _sigma_rels(saved: Saved) -> list[float]:
    try:
        return [float(width) for width in saved.config[_KEY]]
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{saved.path}: not a snapshot of a run's averages") from error
