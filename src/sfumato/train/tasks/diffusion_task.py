"""The task "diffusion": predict the noise in a latent from its caption (Ho et al. 2020; Rombach et al. 2022)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import torch
from torch import Tensor, nn

from sfumato.diffusion.guidance import guide
from sfumato.diffusion.noise import cpu_noise
from sfumato.diffusion.sampling import enter, plan
from sfumato.diffusion.sampling import run as walk
from sfumato.errors import InvalidConfig
from sfumato.models.clip_text import ClipText, ClipTextConfig
from sfumato.models.unet import UNet
from sfumato.models.unet_config import UNetConfig
from sfumato.prompt.tokenizer import Tokenizer
from sfumato.train.inputs.caption_dropout import drawn_caption, token_window
from sfumato.train.inputs.draws import Draws
from sfumato.train.inputs.encoded_latents import LatentDataset, bucket_sizes
from sfumato.train.inputs.image_tensors import write_sheet
from sfumato.train.inputs.resident import ResidentLatents, resident_latents
from sfumato.train.inputs.sample_order import bucketed_index, sample_index
from sfumato.train.inputs.training_data import DataConfig
from sfumato.train.run_config import RunConfig
from sfumato.train.task import Batch, ParameterGroup
from sfumato.train.tasks.caption_head import CaptionHead
from sfumato.train.tasks.noise_levels import NoiseConfig, NoiseLevels, noise_levels

_TENTHS = 10  # parts of the noise levels whose errors are logged apart
_PROBES = 8  # noise levels at which a held-out sample is measured


@dataclass(frozen=True, slots=True, kw_only=True)
class DiffusionTraining:
    """All options of training a latent diffusion model. Defaults are Stable Diffusion v1's. Wrong values raise
    `InvalidConfig`."""

    scaling_factor: Annotated[float, "latents are multiplied by it"] = 0.18215
    caption_dropout: Annotated[float, "share of samples trained with an empty caption"] = 0.1
    shuffle_tags: Annotated[bool, "put a caption's parts between commas in another order, but for the first"] = False
    buckets: Annotated[bool, "keep the pictures' shapes: batches of one shape each, of about as many pixels"] = False
    text_rate: Annotated[float, "the text encoder's learning rate as a share of the UNet's; 0 freezes it"] = 0.0
    caption_head: Annotated[float, "weight of predicting the latents from the caption alone; 0: not done"] = 0.0
    components: Annotated[int, "principal components of the latents that it predicts"] = 256
    prompts: Annotated[tuple[str, ...], "drawn at each validation, in a grid"] = ()
    sample_steps: Annotated[int, "DDIM steps of the pictures drawn at validation"] = 25
    sample_guidance: Annotated[float, "their guidance scale"] = 5.0
    guidance_scale: Annotated[float, "what the published model recommends to those who paint with it"] = 7.5
    run: Annotated[RunConfig, "how the run is conducted"] = field(default_factory=RunConfig)
    data: Annotated[DataConfig, "which samples are trained on"] = field(default_factory=DataConfig)
    noise: Annotated[NoiseConfig, "the noise and the weight of its levels"] = field(default_factory=NoiseConfig)
    unet: Annotated[UNetConfig, "the UNet's shape"] = field(default_factory=UNetConfig)
    text_encoder: Annotated[ClipTextConfig, "the text encoder's shape"] = field(default_factory=ClipTextConfig)

    def __post_init__(self) -> None:
        if self.unet.context_dim != self.text_encoder.width:
            raise InvalidConfig(
                f"unet.context_dim = {self.unet.context_dim} must be text_encoder.width = {self.text_encoder.width}"
            )
        if not 0.0 <= self.caption_dropout <= 1.0:
            raise InvalidConfig(f"caption_dropout = {self.caption_dropout} must be from 0 to 1")
        if not 0.0 <= self.guidance_scale <= 1000.0:
            raise InvalidConfig(f"guidance_scale = {self.guidance_scale} must be from 0 to 1000")
        if self.caption_head and not self.text_rate:
            raise InvalidConfig("caption_head teaches the text encoder: set text_rate above 0, or caption_head to 0")
        if self.caption_head and self.buckets:
            raise InvalidConfig(
                "caption_head predicts latents of one shape: set buckets to false, or caption_head to 0"
            )
        if self.run.resident and (self.buckets or self.shuffle_tags):
            raise InvalidConfig("run.resident keeps latents of one shape and captions as they are: set buckets and "
                                "shuffle_tags to false, or run.resident")  # fmt: skip


class LatentDiffusion(nn.Module):
    """The two networks that turn a caption and noise into latents, and the head that only training has."""

    def __init__(self, unet: UNet, text_encoder: ClipText, head: CaptionHead | None = None) -> None:
        super().__init__()
        self.unet, self.text_encoder, self.head = unet, text_encoder, head


def trained_networks(config: DiffusionTraining, weights: Mapping[str, Tensor]) -> LatentDiffusion:
    """The networks with a run's weights, by name and of any shape, ready to generate, without the head that only
    training has."""
    module = LatentDiffusion(UNet(config.unet), ClipText(config.text_encoder))
    module.load_state_dict({name: tensor for name, tensor in weights.items() if not name.startswith("head.")})
    return module.eval()


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """What is measured and drawn while training: samples held out, prompts, and the way from latents (B, C, h, w),
    already divided by the scaling factor, to pictures (B, 3, H, W) in [-1, 1]."""

    samples: LatentDataset
    prompts: tuple[str, ...] = ()
    decode: Callable[[Tensor], Tensor]


class DiffusionTask:
    """Denoise the latents of `dataset`."""

    def __init__(
        self,
        config: DiffusionTraining,
        dataset: LatentDataset,
        tokenizer: Tokenizer,
        validation: Validation | None = None,
    ) -> None:
        self.config, self.dataset, self.tokenizer, self.validation = config, dataset, tokenizer, validation
        self.levels = noise_levels(config.noise)
        self._resident: ResidentLatents | None = None
        self._levels_by_device: dict[torch.device | None, NoiseLevels] = {None: self.levels}

    def build(self) -> nn.Module:
        """The networks with random weights. The head's components come from the stage before (`TextTask`), with its
        text encoder."""
        unet, text_encoder = UNet(self.config.unet), ClipText(self.config.text_encoder)
        if not self.config.caption_head:
            return LatentDiffusion(unet, text_encoder)
        elements = self.config.unet.in_channels * self.config.unet.sample_size**2
        return LatentDiffusion(
            unet, text_encoder, CaptionHead(self.config.text_encoder.width, self.config.components, elements)
        )

    def groups(self, module: nn.Module) -> Sequence[ParameterGroup]:
        assert isinstance(module, LatentDiffusion)
        groups = [ParameterGroup("unet", list(module.unet.parameters()))]
        if self.config.text_rate:
            text = list(module.text_encoder.parameters())
            if module.head is not None:
                text += module.head.parameters()
            groups.append(ParameterGroup("text_encoder", text, rate_scale=self.config.text_rate))
        return groups

    def load(self, draws: Draws) -> Batch:
        if self.config.run.resident:
            return {"samples": torch.tensor([self._index(number) for number in draws.numbers])}
        samples = [self.dataset.latents(self._index(number)) for number in draws.numbers]
        noise = draws.normal("posterior", samples[0].mean.shape)
        mean = torch.stack([sample.mean for sample in samples]).float()
        logvar = torch.stack([sample.logvar for sample in samples]).float()
        captions = [
            drawn_caption(
                sample.captions,
                self.config.caption_dropout,
                draws.generator("caption", number),
                shuffle_tags=self.config.shuffle_tags,
            )
            for sample, number in zip(samples, draws.numbers, strict=True)
        ]
        return {
            "latents": (mean + torch.exp(0.5 * logvar) * noise) * self.config.scaling_factor,
            "tokens": torch.stack([token_window(self.tokenizer, caption) for caption in captions]),
        }

    def _index(self, number: int) -> int:
        """Which sample comes at this number, counted over all epochs."""
        run = self.config.run
        if self.config.buckets:
            return bucketed_index(number, bucket_sizes(self.dataset), run.batch, run.seed)
        return sample_index(number, len(self.dataset), run.seed)

    def loss(self, module: nn.Module, batch: Batch, draws: Draws) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The scalar denoising loss; its error as a scalar and by noise (10, 2); and what the caption head leaves."""
        assert isinstance(module, LatentDiffusion)
        latents, tokens = self._drawn(batch, draws)
        config, shape, device = self.config.noise, latents.shape[1:], latents.device
        levels = self._levels_for(draws)
        t = self._timesteps(levels, draws)
        noise = draws.normal("noise", shape)
        if config.offset:
            noise = noise + config.offset * draws.normal("offset", (shape[0], 1, 1))
        shown = noise
        if config.perturbation:
            shown = noise + config.perturbation * draws.normal("perturbation", shape)
        alphas = levels.alphas_cumprod[t].view(-1, 1, 1, 1).to(device)
        noise, shown = noise.to(device), shown.to(device)
        noisy = alphas.sqrt() * latents + (1.0 - alphas).sqrt() * shown
        with contextlib.nullcontext() if self.config.text_rate else torch.no_grad():
            context = module.text_encoder(tokens)
        answer = module.unet(noisy, t.to(device), context).float()
        error = (answer - TARGETS[config.prediction](latents, noise, alphas)).square().mean(dim=(1, 2, 3))
        loss = (levels.weights[t].to(device) * error).mean()
        measured = {"error": error.mean(), "error_at_noise": self._by_noise(error.detach(), t)}
        if module.head is not None:
            measured["unexplained"] = module.head.loss(context.float(), latents / self.config.scaling_factor, draws)
            loss = loss + self.config.caption_head * measured["unexplained"]
        return loss, measured

    def _by_noise(self, error: Tensor, t: Tensor) -> Tensor:
        """Sums and counts (10, 2) of the errors by tenths of the timesteps, the cleanest first."""
        tenths = (t * _TENTHS // len(self.levels.alphas_cumprod)).to(error.device)
        found = torch.zeros(_TENTHS, 2, device=error.device)
        return found.index_add_(0, tenths, torch.stack([error, torch.ones_like(error)], dim=1))

    def _drawn(self, batch: Batch, draws: Draws) -> tuple[Tensor, Tensor]:
        """Scaled latents (B, C, h, w) and token windows (B, T)."""
        if not self.config.run.resident:
            return batch["latents"], batch["tokens"]
        samples = batch["samples"]
        with torch.autocast(samples.device.type, enabled=False):
            if self._resident is None:
                self._resident = resident_latents(self.dataset, self.tokenizer, samples.device)
            latents, tokens = self._resident.drawn(samples, draws, self.config.caption_dropout)
        return latents * self.config.scaling_factor, tokens

    def _levels_for(self, draws: Draws) -> NoiseLevels:
        """The levels where timesteps are drawn, brought there once."""
        if draws.device not in self._levels_by_device:
            assert draws.device is not None
            self._levels_by_device[draws.device] = self.levels.to(draws.device)
        return self._levels_by_device[draws.device]

    def _timesteps(self, levels: NoiseLevels, draws: Draws) -> Tensor:
        uniform = draws.uniform("timestep")
        if self.config.noise.stratified:
            batch = self.config.run.batch
            strata = torch.tensor([number % batch for number in draws.numbers])
            uniform = (strata.to(uniform.device, non_blocking=True) + uniform) / batch
        return levels.timesteps(uniform)

    @torch.no_grad()
    def validate(self, module: nn.Module, picture: Path) -> Mapping[str, float]:
        """The error on held-out samples over all noise levels, with their own captions and with each other's (the gap
        is how much the text is heeded), and the prompts drawn. The score is the first."""
        assert isinstance(module, LatentDiffusion)
        if self.validation is None:
            return {}
        if self.validation.prompts:
            write_sheet(list(self._draw(module, self.validation).clamp(-1.0, 1.0)), picture)
        samples = [self.validation.samples.latents(i) for i in range(len(self.validation.samples))]
        device = next(module.parameters()).device
        latents = torch.stack([sample.mean for sample in samples]).float().to(device) * self.config.scaling_factor
        tokens = torch.stack([token_window(self.tokenizer, sample.captions[0]) for sample in samples]).to(device)
        context = module.text_encoder(tokens)
        noise = cpu_noise(range(len(samples)))(tuple(latents.shape)).to(device)
        totals = {"error": 0.0, "error_other_caption": 0.0}
        count = len(self.levels.alphas_cumprod)
        for i in range(_PROBES):
            t = torch.full((len(samples),), (2 * i + 1) * count // (2 * _PROBES))
            alphas = self.levels.alphas_cumprod[t].view(-1, 1, 1, 1).to(device)
            target = TARGETS[self.config.noise.prediction](latents, noise, alphas)
            noisy = alphas.sqrt() * latents + (1.0 - alphas).sqrt() * noise
            for name, given in (("error", context), ("error_other_caption", context.roll(1, 0))):
                answer = module.unet(noisy, t.to(device), given)
                totals[name] += float((answer - target).square().mean()) / _PROBES
        return {**totals, "score": totals["error"]}

    def _draw(self, module: LatentDiffusion, validation: Validation) -> Tensor:
        """The prompts as pictures (B, 3, H, W); the seeds are their positions."""
        unet, config = self.config.unet, self.config
        device = next(module.parameters()).device
        windows = [token_window(self.tokenizer, prompt) for prompt in ("", *validation.prompts)]
        states = module.text_encoder(torch.stack(windows).to(device))
        count = len(validation.prompts)
        contexts = (states[:1].expand(count, -1, -1), states[1:])

        def answers(x: Tensor, t: float, which: tuple[int, ...]) -> Sequence[Tensor]:
            """The UNet's answers for x (B, C, h, w) at t, one (B, C, h, w) for each of `which`."""
            timesteps = torch.full((count * len(which),), t, device=device)
            context = torch.cat([contexts[i] for i in which])
            out: Tensor = module.unet(torch.cat([x] * len(which)), timesteps, context)
            return out.chunk(len(which))

        route = plan(config.noise.schedule(), sampler="ddim", steps=config.sample_steps)
        start = cpu_noise(range(count))((count, unet.in_channels, unet.sample_size, unet.sample_size)).to(device)
        predict = guide(answers, scale=config.sample_guidance)
        latents = walk(route, predict, enter(route, start), prediction=config.noise.prediction)
        return validation.decode(latents / config.scaling_factor)


def _epsilon(latents: Tensor, noise: Tensor, alphas: Tensor) -> Tensor:
    return noise


def _velocity(latents: Tensor, noise: Tensor, alphas: Tensor) -> Tensor:
    """v = √ᾱ ε − √(1 − ᾱ) x0 (Salimans & Ho 2022, appendix D)."""
    return alphas.sqrt() * noise - (1.0 - alphas).sqrt() * latents


TARGETS: Mapping[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {"epsilon": _epsilon, "v_prediction": _velocity}
"""What the UNet should answer, from clean latents (B, C, h, w), noise alike and ᾱ (B, 1, 1, 1)."""
