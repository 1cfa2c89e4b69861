"""The task "autoencoder": pictures to latents and back (Rombach et al. 2022, section 3.1 and appendix G)."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from sfumato.data.samples import Dataset
from sfumato.errors import InvalidConfig
from sfumato.models.autoencoder import Autoencoder, AutoencoderConfig
from sfumato.models.efficientnet import packaged_weights
from sfumato.train.inputs.draws import Draws
from sfumato.train.inputs.image_tensors import psnr, random_crop, scaled, to_bytes, whole_cells, write_sheet
from sfumato.train.inputs.resident import colours_swapped, cropped, resident_pictures
from sfumato.train.inputs.sample_order import sample_index
from sfumato.train.inputs.training_data import DataConfig
from sfumato.train.losses.edges import edge_l1
from sfumato.train.losses.efficientnet_distance import load_efficientnet
from sfumato.train.losses.kl import kl_to_unit_gaussian
from sfumato.train.losses.lpips import load_lpips
from sfumato.train.losses.patchgan import PatchDiscriminator, adaptive_weight, frozen_logits, hinge_discriminator
from sfumato.train.run_config import RunConfig
from sfumato.train.task import Batch, ParameterGroup
from sfumato.train.tasks.equivariance import transformed

_SHEET = 32  # held-out pictures drawn, each beside its reconstruction


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoencoderLoss:
    """Weights of the terms. Each is a mean over the batch and over its elements, or with `sums` a sum over a picture's,
    as the reference code has it; there the L1 is 1, LPIPS 1, KL 1e-6 and the adversarial weight 0.5. Wrong values raise
    `InvalidConfig`."""

    sums: Annotated[bool, "terms are sums over a picture's elements; they depend on the resolution then"] = False
    l1: Annotated[float, "of |reconstruction - picture|"] = 1.0
    coarse: Annotated[float, "of the L1 between the means over latent cells: colours are found sooner"] = 0.0
    edges: Annotated[float, "of the L1 between their gradients"] = 0.5
    edge_scales: Annotated[int, "octaves of the gradients"] = 3
    lpips: Annotated[float, "of the LPIPS distance; 0 leaves it out"] = 0.0
    lpips_vgg: Annotated[str, "file with torchvision's VGG16 weights"] = ""
    lpips_heads: Annotated[str, "file with LPIPS' linear heads"] = ""
    features: Annotated[float, "of the distance in EfficientNet-Lite0's features; 0 leaves it out"] = 0.0
    features_file: Annotated[str, "its weights; empty for those of the extra's package"] = ""
    learned_scale: Annotated[bool, "divide the reconstruction's terms by exp(s), and add s, which is learned"] = False
    kl: Annotated[float, "of the divergence of the latents from a unit Gaussian"] = 3e-4
    equivariant: Annotated[float, "share of the samples decoded from scaled or turned latents (EQ-VAE)"] = 0.0
    adversarial: Annotated[
        float,
        "of the critic's judgement, times the adaptive weight; 0 for no critic. Its batch norms and that weight are of "
        "each process's part of the batch (accumulate): other parts, other numbers",
    ] = 0.0
    adversarial_from: Annotated[int, "first step, from 0, with the critic"] = 50_001
    adversarial_channels: Annotated[int, "of the critic's first layer"] = 64

    def __post_init__(self) -> None:
        if not 0.0 <= self.equivariant < 1.0:
            raise InvalidConfig(f"loss.equivariant = {self.equivariant} must be from 0 to below 1")
        if self.lpips and not (self.lpips_vgg and self.lpips_heads):
            raise InvalidConfig("loss.lpips needs loss.lpips_vgg and loss.lpips_heads: nothing is downloaded")


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoencoderTraining:
    """All options of training an autoencoder. Wrong values raise `InvalidConfig`."""

    crop: Annotated[int, "side of the square cut from each picture at random, pixels"] = 256
    first_logvar: Annotated[float, "of the posterior in the first weights: near 0 its noise hides the picture"] = 0.0
    swap_colours: Annotated[float, "share of pictures whose colour channels are shuffled, for sets of few hues"] = 0.0
    decoder_only: Annotated[bool, "leave the encoder as it is, for the sake of a UNet that knows its latents"] = False
    latent_noise: Annotated[float, "most noise added to latents, so that the decoder forgives a UNet's errors"] = 0.0
    run: Annotated[RunConfig, "how the run is conducted"] = field(default_factory=RunConfig)
    data: Annotated[DataConfig, "which samples are trained on"] = field(default_factory=DataConfig)
    model: Annotated[AutoencoderConfig, "the autoencoder's shape"] = field(default_factory=AutoencoderConfig)
    loss: Annotated[AutoencoderLoss, "what is minimised"] = field(default_factory=AutoencoderLoss)

    def __post_init__(self) -> None:
        factor = self.model.factor
        if self.crop < 1 or self.crop % factor:
            raise InvalidConfig(f"crop = {self.crop} must be a multiple of {factor}, the autoencoder's factor")
        if not 0.0 <= self.swap_colours <= 1.0:
            raise InvalidConfig(f"swap_colours = {self.swap_colours} must be from 0 to 1")
        if self.latent_noise < 0.0:
            raise InvalidConfig(f"latent_noise = {self.latent_noise} must be 0 or more")


class TrainedAutoencoder(nn.Module):
    """The autoencoder, and what only its training has: the critic and the learned scale."""

    def __init__(self, config: AutoencoderTraining) -> None:
        super().__init__()
        self.autoencoder = Autoencoder(config.model)
        self.discriminator = PatchDiscriminator(config.loss.adversarial_channels) if config.loss.adversarial else None
        self.log_scale = nn.Parameter(torch.zeros(())) if config.loss.learned_scale else None


class AutoencoderTask:
    """Reconstruct the pictures of `dataset`; `held_out` are for validation only."""

    def __init__(self, config: AutoencoderTraining, dataset: Dataset, held_out: Sequence[Image.Image] = ()) -> None:
        self.config, self.dataset = config, dataset
        self.held_out = [whole_cells(to_bytes(picture), config.model.factor) for picture in held_out]
        self.networks = _networks(config.loss)
        self._resident: Tensor | None = None

    def build(self) -> nn.Module:
        module = TrainedAutoencoder(self.config)
        quant_conv = module.autoencoder.quant_conv
        if self.config.first_logvar and isinstance(quant_conv, nn.Conv2d) and quant_conv.bias is not None:
            latent = self.config.model.latent_channels
            with torch.no_grad():
                quant_conv.weight[latent:] *= 0.1
                quant_conv.bias[latent:] = self.config.first_logvar
        return module

    def groups(self, module: nn.Module) -> Sequence[ParameterGroup]:
        assert isinstance(module, TrainedAutoencoder)
        critic = [] if module.discriminator is None else list(module.discriminator.parameters())
        left_out = set(critic)
        if self.config.decoder_only:
            left_out |= {*module.autoencoder.encoder.parameters(), *module.autoencoder.quant_conv.parameters()}
        rest = [parameter for parameter in module.parameters() if parameter not in left_out]
        groups = [ParameterGroup("autoencoder", rest)]
        return [*groups, ParameterGroup("discriminator", critic, may_lack_gradient=True)] if critic else groups

    def load(self, draws: Draws) -> Batch:
        if self.config.run.resident:
            size, seed = len(self.dataset), self.config.run.seed
            return {"samples": torch.tensor([sample_index(number, size, seed) for number in draws.numbers])}
        return {"pictures": self.squares(draws)}

    def squares(self, draws: Draws) -> Tensor:
        """The samples' squares (B, 3, crop, crop) of bytes, read one by one whether or not the data set is resident."""
        return torch.stack([self._picture(draws, number) for number in draws.numbers])

    def _picture(self, draws: Draws, number: int) -> Tensor:
        """One sample's square, (3, crop, crop) of bytes."""
        index = sample_index(number, len(self.dataset), self.config.run.seed)
        generator = draws.generator("picture", number)
        pixels = random_crop(to_bytes(self.dataset.sample(index).picture), self.config.crop, generator)
        swapped = float(torch.rand((), generator=generator)) < self.config.swap_colours
        return pixels[torch.randperm(3, generator=generator)] if swapped else pixels

    def _drawn(self, batch: Batch, draws: Draws) -> Tensor:
        """The samples' squares, (B, 3, crop, crop) of bytes."""
        if not self.config.run.resident:
            return batch["pictures"]
        samples = batch["samples"]
        if self._resident is None:
            self._resident = resident_pictures(self.dataset, samples.device)
        return colours_swapped(
            cropped(self._resident, samples, self.config.crop, draws), self.config.swap_colours, draws
        )

    def loss(self, module: nn.Module, batch: Batch, draws: Draws) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The scalar loss of the autoencoder, and of its discriminator if it has one; and their terms, scalars."""
        assert isinstance(module, TrainedAutoencoder)
        weights = self.config.loss
        pictures = scaled(self._drawn(batch, draws))
        if self.config.run.channels_last:
            pictures = pictures.contiguous(memory_format=torch.channels_last)
        with torch.no_grad() if self.config.decoder_only else contextlib.nullcontext():
            posterior = module.autoencoder.encode(pictures)
        mean, logvar = posterior.mean.float(), posterior.logvar.float()
        noise = draws.normal("posterior", mean.shape[1:]).to(mean.device)
        latents = mean + torch.exp(0.5 * logvar) * noise
        if self.config.latent_noise:
            latents = latents + self._latent_noise(draws, latents)
        pairs = self._pairs(latents, pictures, draws)
        outputs = [module.autoencoder.decode(z).float() for z, _ in pairs]
        measured: dict[str, Tensor] = {}
        for output, (_, target) in zip(outputs, pairs, strict=True):
            share = len(target) / len(pictures)
            for name, value in self._distances(output, target).items():
                measured[name] = measured.get(name, 0.0) + share * value
        reconstruction = sum((getattr(weights, name) * value for name, value in measured.items()), mean.new_zeros(()))
        measured["kl"] = kl_to_unit_gaussian(mean, logvar).mean()
        if module.log_scale is not None:
            reconstruction = reconstruction / module.log_scale.exp() + module.log_scale
            measured["log_scale"] = module.log_scale
        if weights.sums:
            reconstruction = reconstruction * pictures[0].numel()
        loss = reconstruction + weights.kl * measured["kl"] * (mean[0].numel() if weights.sums else 1)
        if module.discriminator is not None and draws.step >= weights.adversarial_from:
            added, judged = self._adversarial(module, reconstruction, outputs[0], pairs[0][1])
            loss, measured = loss + added, {**measured, **judged}
        return loss, measured

    def _pairs(self, latents: Tensor, pictures: Tensor, draws: Draws) -> list[tuple[Tensor, Tensor]]:
        """Latents and what they should decode to, in one or two groups: a share of the samples is scaled and turned."""
        share = self.config.loss.equivariant
        if not share:
            return [(latents, pictures)]
        moved = [i for i, number in enumerate(draws.numbers) if _counts(share, number)]
        kept = [i for i, number in enumerate(draws.numbers) if not _counts(share, number)]
        pairs = [(latents[kept], pictures[kept])] if kept else []
        if moved:
            factor, generator = self.config.model.factor, draws.shared("equivariance")
            pairs.append(transformed(latents[moved], pictures[moved], factor, generator))
        return pairs

    def _latent_noise(self, draws: Draws, latents: Tensor) -> Tensor:
        """Noise (B, C, h, w), as much for each sample as chance says, from none to the most."""
        deviation = self.config.latent_noise * draws.uniform("latent noise share")[:, None, None, None]
        return (deviation * draws.normal("latent noise", latents.shape[1:])).to(latents.device)

    def _distances(self, output: Tensor, target: Tensor) -> dict[str, Tensor]:
        """The reconstruction's terms, by the names of their weights."""
        terms = {
            "l1": (output - target).abs().mean(),
            "coarse": F.avg_pool2d(output - target, self.config.model.factor).abs().mean(),
            "edges": edge_l1(output, target, self.config.loss.edge_scales),
        }
        for name, network in self.networks.items():
            terms[name] = network.to(output.device)(output, target).mean()
        return terms

    def _adversarial(
        self, module: TrainedAutoencoder, reconstruction: Tensor, output: Tensor, target: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The autoencoder's and the critic's losses in one sum: neither has a gradient for the other's weights.

        The reference code updates the critic after the autoencoder; here both answer to the same reconstruction.
        """
        discriminator = module.discriminator
        assert discriminator is not None
        fooled = -frozen_logits(discriminator, output).mean()
        balance = adaptive_weight(reconstruction, fooled, module.autoencoder.decoder.conv_out.weight)
        real, fake = discriminator(target), discriminator(output.detach())
        critic = hinge_discriminator(real, fake)
        loss = self.config.loss.adversarial * balance * fooled + critic
        return loss, {
            "adversarial": fooled,
            "adaptive_weight": balance,
            "discriminator": critic,
            "logits_real": real.mean(),
            "logits_fake": fake.mean(),
        }

    @torch.no_grad()
    def validate(self, module: nn.Module, picture: Path) -> Mapping[str, float]:
        """Mean PSNR over the held-out pictures (dB), and a sheet of them, each above its reconstruction. The score is
        minus the PSNR."""
        assert isinstance(module, TrainedAutoencoder)
        device = next(module.parameters()).device
        psnrs, pairs = [], []
        for pixels in self.held_out:
            target = scaled(pixels[None].to(device))
            output = module.autoencoder.decode(module.autoencoder.encode(target).mean).clamp(-1.0, 1.0)
            psnrs.append(psnr(output, target))
            pairs.append(torch.cat([target[0], output[0]], dim=1))
        if not psnrs:
            return {}
        write_sheet(pairs[:_SHEET], picture)
        mean = math.fsum(psnrs) / len(psnrs)
        return {"psnr": mean, "score": -mean}


def _counts(share: float, number: int) -> bool:
    """Whether the sample is among a share of all, spread evenly over their numbers: whatever batch it is in."""
    return math.floor((number + 1) * share) > math.floor(number * share)


def _networks(loss: AutoencoderLoss) -> dict[str, nn.Module]:
    """The fixed networks whose distances count, by the names of their weights."""
    networks: dict[str, nn.Module] = {}
    if loss.lpips:
        networks["lpips"] = load_lpips(Path(loss.lpips_vgg), Path(loss.lpips_heads))
    if loss.features:
        path = Path(loss.features_file) if loss.features_file else packaged_weights()
        networks["features"] = load_efficientnet(path)
    return networks
