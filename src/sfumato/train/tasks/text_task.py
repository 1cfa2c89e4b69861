"""The task "text": a text encoder that tells pictures apart by their captions, before a UNet learns to listen to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import torch
from torch import Tensor, nn

from sfumato.errors import InvalidConfig
from sfumato.models.clip_text import ClipText, ClipTextConfig
from sfumato.prompt.tokenizer import Tokenizer
from sfumato.train.inputs.caption_dropout import drawn_caption, token_window
from sfumato.train.inputs.draws import Draws
from sfumato.train.inputs.encoded_latents import LatentDataset
from sfumato.train.inputs.sample_order import sample_index
from sfumato.train.run_config import RunConfig
from sfumato.train.task import Batch, ParameterGroup
from sfumato.train.tasks.caption_head import CaptionHead


@dataclass(frozen=True, slots=True, kw_only=True)
class TextTraining:
    """All options of training a text encoder to predict latents. Wrong values raise `InvalidConfig`."""

    components: Annotated[int, "principal components of the latents that captions predict"] = 256
    fitted_on: Annotated[int, "samples whose latents decide the components"] = 4096
    run: Annotated[RunConfig, "how the run is conducted"] = field(default_factory=RunConfig)
    text_encoder: Annotated[ClipTextConfig, "the text encoder's shape"] = field(default_factory=ClipTextConfig)

    def __post_init__(self) -> None:
        if not 1 <= self.components <= self.fitted_on:
            raise InvalidConfig(f"components = {self.components} must be from 1 to fitted_on = {self.fitted_on}")
        if self.run.resident:
            raise InvalidConfig("run.resident is for autoencoders and diffusion models: set it to false")


class TextAndHead(nn.Module):
    """The text encoder and its prediction of pictures."""

    def __init__(self, text_encoder: ClipText, head: CaptionHead) -> None:
        super().__init__()
        self.text_encoder, self.head = text_encoder, head


class TextTask:
    """Predict the latents of `dataset` from their captions; `held_out` is for validation only."""

    def __init__(
        self,
        config: TextTraining,
        dataset: LatentDataset,
        tokenizer: Tokenizer,
        held_out: LatentDataset | None = None,
    ) -> None:
        self.config, self.dataset, self.tokenizer, self.held_out = config, dataset, tokenizer, held_out

    def build(self) -> nn.Module:
        """The encoder with random weights, and the components of the data set's first samples in epoch 0."""
        seed, size = self.config.run.seed, len(self.dataset)
        numbers = range(min(self.config.fitted_on, size))
        latents = torch.stack([self.dataset.latents(sample_index(number, size, seed)).mean for number in numbers])
        encoder = ClipText(self.config.text_encoder)
        head = CaptionHead(self.config.text_encoder.width, self.config.components, latents[0].numel())
        head.fit(latents.float())
        return TextAndHead(encoder, head)

    def groups(self, module: nn.Module) -> Sequence[ParameterGroup]:
        return [ParameterGroup("text_encoder", list(module.parameters()))]

    def load(self, draws: Draws) -> Batch:
        seed, size = self.config.run.seed, len(self.dataset)
        samples = [self.dataset.latents(sample_index(number, size, seed)) for number in draws.numbers]
        captions = [
            drawn_caption(sample.captions, 0.0, draws.generator("caption", number))
            for sample, number in zip(samples, draws.numbers, strict=True)
        ]
        return {
            "latents": torch.stack([sample.mean for sample in samples]).float(),
            "tokens": torch.stack([token_window(self.tokenizer, caption) for caption in captions]),
        }

    def loss(self, module: nn.Module, batch: Batch, draws: Draws) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The scalar loss of the caption head on the text encoder's states."""
        assert isinstance(module, TextAndHead)
        states = module.text_encoder(batch["tokens"]).float()
        return module.head.loss(states, batch["latents"], draws), {}

    @torch.no_grad()
    def validate(self, module: nn.Module, picture: Path) -> Mapping[str, float]:
        """The unexplained share of the held-out samples' variance, seen through all positions; it is the score."""
        assert isinstance(module, TextAndHead)
        if self.held_out is None:
            return {}
        samples = [self.held_out.latents(i) for i in range(len(self.held_out))]
        device = next(module.parameters()).device
        latents = torch.stack([sample.mean for sample in samples]).float().to(device)
        tokens = torch.stack([token_window(self.tokenizer, sample.captions[0]) for sample in samples]).to(device)
        states = module.text_encoder(tokens)
        answer = module.head(states, states.new_ones(states.shape[:2]))
        unexplained = float((answer - module.head.components(latents)).square().mean())
        return {"unexplained": unexplained, "score": unexplained}
