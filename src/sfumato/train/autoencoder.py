"""The task "autoencoder": pictures to latents and back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from sfumato.data.samples import Dataset
from sfumato.errors import InvalidConfig
from sfumato.models.autoencoder import Autoencoder, AutoencoderConfig
from sfumato.train.config import RunConfig
from sfumato.train.draws import Draws
from sfumato.train.losses.edges import edge_l1
from sfumato.train.losses.kl import kl_to_unit_gaussian
from sfumato.train.optimizers import ParameterGroup
from sfumato.train.order import sample_index
from sfumato.train.trainer import Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoencoderLoss:
    """Weights of the terms, each a mean over pictures and elements, so that they don't depend on the resolution."""

    l1: Annotated[float, "of |reconstruction - picture|"] = 1.0
    edges: Annotated[float, "of the L1 between their gradients"] = 0.5
    edge_scales: Annotated[int, "octaves of the gradients"] = 3
    kl: Annotated[float, "of the divergence of the latents from a unit Gaussian, a latent element"] = 3e-4
    equivariant: Annotated[
        float, "share of each batch decoded from scaled or turned latents (EQ-VAE, Kouzelis et al. 2025), 0 to below 1"
    ] = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.equivariant < 1.0:
            raise InvalidConfig(f"loss.equivariant = {self.equivariant} must be from 0 to below 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoencoderTraining:
    """All options of `train autoencoder`."""

    crop: Annotated[int, "side of the square cut from each picture at random, pixels"] = 128
    first_logvar: Annotated[float, "of the latents' posterior in the first weights: near 0 the noise hides them"] = -6.0
    run: Annotated[RunConfig, "how the run is conducted"] = field(default_factory=RunConfig)
    model: Annotated[AutoencoderConfig, "the autoencoder's shape"] = field(default_factory=AutoencoderConfig)
    loss: Annotated[AutoencoderLoss, "what is minimised"] = field(default_factory=AutoencoderLoss)

    def __post_init__(self) -> None:
        if self.crop < 1 or self.crop % self.model.factor:
            raise InvalidConfig(
                f"crop = {self.crop} must be a multiple of {self.model.factor}, the autoencoder's factor"
            )


class AutoencoderTask:
    """Reconstruct pictures of `dataset`; `held_out` are for validation only."""

    def __init__(self, config: AutoencoderTraining, dataset: Dataset, held_out: Sequence[Image.Image] = ()) -> None:
        self.config, self.dataset = config, dataset
        self.held_out = [to_pixels(picture) for picture in held_out]

    def build(self) -> nn.Module:
        module = Autoencoder(self.config.model)
        if isinstance(module.quant_conv, nn.Conv2d):
            latent = self.config.model.latent_channels
            bias = module.quant_conv.bias
            assert bias is not None
            with torch.no_grad():
                module.quant_conv.weight[latent:] *= 0.1
                bias[latent:] = self.config.first_logvar
        return module

    def groups(self, module: nn.Module) -> Sequence[ParameterGroup]:
        return [ParameterGroup("autoencoder", list(module.parameters()))]

    def load(self, draws: Draws) -> Batch:
        seed, size = self.config.run.seed, len(self.dataset)
        return {
            "pictures": torch.stack(
                [
                    _crop(
                        to_pixels(self.dataset.sample(sample_index(number, size, seed)).picture),
                        self.config.crop,
                        draws.generator("crop", number),
                    )
                    for number in draws.numbers
                ]
            )
        }

    def loss(self, module: nn.Module, batch: Batch, draws: Draws) -> tuple[Tensor, Mapping[str, Tensor]]:
        assert isinstance(module, Autoencoder)
        weights = self.config.loss
        pictures = scaled(batch["pictures"])
        if self.config.run.channels_last:
            pictures = pictures.contiguous(memory_format=torch.channels_last)
        posterior = module.encode(pictures)
        mean, logvar = posterior.mean.float(), posterior.logvar.float()
        noise = draws.normal("posterior", mean.shape[1:]).to(mean.device)
        latents = mean + torch.exp(0.5 * logvar) * noise
        turned = round(weights.equivariant * len(pictures))
        pairs = [(latents[turned:], pictures[turned:])]
        if turned:
            pairs.append(_transformed(latents[:turned], pictures[:turned], module.config.factor, draws))
        loss, measured = latents.new_zeros(()), {"l1": latents.new_zeros(()), "edges": latents.new_zeros(())}
        for z, target in pairs:
            output, share = module.decode(z).float(), len(z) / len(pictures)
            terms = {"l1": (output - target).abs().mean(), "edges": edge_l1(output, target, weights.edge_scales)}
            loss = loss + share * (weights.l1 * terms["l1"] + weights.edges * terms["edges"])
            measured = {name: value + share * terms[name] for name, value in measured.items()}
        kl = kl_to_unit_gaussian(mean, logvar).mean()
        return loss + weights.kl * kl, {**measured, "kl": kl}

    @torch.no_grad()
    def validate(self, module: nn.Module, picture: Path) -> Mapping[str, float]:
        """Mean PSNR over the held-out pictures (dB), and a sheet of pairs. The score is minus the PSNR."""
        assert isinstance(module, Autoencoder)
        device = next(module.parameters()).device
        psnrs, rows = [], []
        for pixels in self.held_out:
            target = scaled(pixels[None].to(device))
            output = module.decode(module.encode(target).mean).clamp(-1.0, 1.0)
            psnrs.append(psnr(output, target))
            rows.append(torch.cat([target[0], output[0]], dim=1))
        if rows:
            _sheet(rows[:32], picture)
        mean = sum(psnrs) / len(psnrs) if psnrs else math.nan
        return {"psnr": mean, "score": -mean}


def psnr(output: Tensor, target: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of pixels in [-1, 1]; infinite where they are equal."""
    error = float(((output - target) / 2.0).square().mean())
    return -10.0 * math.log10(error) if error else math.inf


def to_pixels(picture: Image.Image) -> Tensor:
    """(3, H, W) of bytes; transparent places are white."""
    if picture.mode != "RGB":
        layered = Image.new("RGBA", picture.size, (255, 255, 255, 255))
        layered.alpha_composite(picture.convert("RGBA"))
        picture = layered.convert("RGB")
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def scaled(pixels: Tensor) -> Tensor:
    """Bytes to float32 in [-1, 1]."""
    return pixels.float() / 127.5 - 1.0


def _crop(pixels: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """A random square of a picture at least that large."""
    _, height, width = pixels.shape
    if height < side or width < side:
        raise InvalidConfig(f"a picture of {width}×{height} is smaller than crop = {side}: lower it, or leave it out")
    top = int(torch.randint(height - side + 1, (), generator=generator))
    left = int(torch.randint(width - side + 1, (), generator=generator))
    return pixels[:, top : top + side, left : left + side]


def _transformed(latents: Tensor, pictures: Tensor, factor: int, draws: Draws) -> tuple[Tensor, Tensor]:
    """Both sides of EQ-VAE's constraint under one random transform: scaled by s in [¼, 1), or turned by quarters.

    The scales are those whose pictures are whole latent cells wide. One transform a step keeps the batch one tensor.
    """
    generator = draws.shared("equivariance")
    side = latents.shape[-1]
    turns = int(torch.randint(4, (), generator=generator))
    cells = int(torch.randint(max(side // 4, 1), side + 1, (), generator=generator))
    if cells < side:
        latents = F.interpolate(latents, size=(cells, cells), mode="bilinear", antialias=True)
        pictures = F.interpolate(pictures, size=(cells * factor, cells * factor), mode="bilinear", antialias=True)
    return latents.rot90(turns, (-2, -1)), pictures.rot90(turns, (-2, -1))


def _sheet(rows: Sequence[Tensor], path: Path) -> None:
    """Write pictures (3, H, W) in [-1, 1], eight a row, as a PNG."""
    blank = torch.ones_like(rows[0])
    padded = [*rows, *[blank] * (-len(rows) % 8)]
    grid = torch.cat([torch.cat(padded[i : i + 8], dim=2) for i in range(0, len(padded), 8)], dim=1)
    array = ((grid + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    Image.fromarray(array).save(path)
