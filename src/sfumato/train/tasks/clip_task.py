"""The task "clip": pictures and captions into one space (Radford et al. 2021).

What it trains judges other models: it must share no weights with the text encoder of what it judges.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import torch
from PIL import Image
from torch import Tensor, nn

from sfumato.caption_retrieval import Retriever, retrieval
from sfumato.data.samples import Dataset, Sample
from sfumato.data.transforms import fitted, on_background
from sfumato.errors import DataError, InvalidConfig
from sfumato.models.clip import FIRST_LOGIT_SCALE, LARGEST_LOGIT_SCALE, Clip, ClipConfig
from sfumato.models.clip_text import ClipTextConfig
from sfumato.models.clip_vision import ClipVisionConfig
from sfumato.prompt.tokenizer import Tokenizer
from sfumato.safety.checker import preprocess
from sfumato.train.inputs.caption_dropout import drawn_caption, token_window
from sfumato.train.inputs.draws import Draws
from sfumato.train.inputs.image_tensors import scaled, to_bytes, write_sheet
from sfumato.train.inputs.sample_order import sample_index
from sfumato.train.inputs.training_data import DataConfig
from sfumato.train.run_config import RunConfig
from sfumato.train.task import Batch, ParameterGroup
from sfumato.train.tasks.hard_negatives import hard_negative

CANDIDATES = 100
_SHEET = 32  # held-out pictures drawn, each above the one whose caption it chose
_TOKEN_STD, _POSITION_STD = 0.02, 0.01  # as OpenAI's code begins


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipTraining:
    """All options of training an image-text model. Defaults are those of CLIP ViT-L/14.

    A caption is compared with the pictures of its process's part of the batch: with run.accumulate parts, or more
    processes, there are fewer to choose from, and the loss is another one. Wrong values raise `InvalidConfig`.
    """

    zoom: Annotated[float, "smallest share of a picture's sides that a training crop shows; 1: the whole"] = 0.9
    hard_negatives: Annotated[float, "share of captions also compared with themselves, a side or colour changed"] = 0.0
    run: Annotated[RunConfig, "how the run is conducted"] = field(default_factory=RunConfig)
    data: Annotated[DataConfig, "which samples are trained on"] = field(default_factory=DataConfig)
    text_encoder: Annotated[ClipTextConfig, "the text tower's shape"] = field(default_factory=ClipTextConfig)
    vision: Annotated[ClipVisionConfig, "the image tower's shape"] = field(default_factory=ClipVisionConfig)

    def __post_init__(self) -> None:
        if not 0.0 < self.zoom <= 1.0:
            raise InvalidConfig(f"zoom = {self.zoom} must be above 0, and at most 1")
        if not 0.0 <= self.hard_negatives <= 1.0:
            raise InvalidConfig(f"hard_negatives = {self.hard_negatives} must be from 0 to 1")
        if self.run.resident:
            raise InvalidConfig("run.resident is for autoencoders and diffusion models: set it to false")
        if self.run.batch // self.run.accumulate < 2:
            raise InvalidConfig(
                f"run.batch = {self.run.batch} in {self.run.accumulate} parts leaves nothing to compare a caption with"
            )


class ClipTask:
    """Tell which picture of a batch belongs to which caption. `held_out` samples are for validation only, each with
    the caption of its own that comes first; their captions must differ. Raises `InvalidConfig` for a
    tokenizer with more tokens than the config has."""

    def __init__(
        self, config: ClipTraining, dataset: Dataset, tokenizer: Tokenizer, held_out: Sequence[Sample] = ()
    ) -> None:
        if tokenizer.vocab_size > config.text_encoder.vocab_size:
            raise InvalidConfig(
                f"text_encoder.vocab_size = {config.text_encoder.vocab_size}: the tokenizer has "
                f"{tokenizer.vocab_size} tokens; set it to that, or give another with --tokenizer"
            )
        self.config, self.dataset, self.held_out = config, dataset, held_out
        self.tokenizer = replace(tokenizer, max_length=config.text_encoder.positions)

    def build(self) -> nn.Module:
        """The model with random weights, spread as OpenAI's code spreads them where torch's own spread would drown the
        rest."""
        module = Clip(
            ClipConfig(text=self.config.text_encoder, vision=self.config.vision, eos_id=self.tokenizer.eos_id)
        )
        width = self.config.vision.width
        with torch.no_grad():
            module.text.embeddings.token_embedding.weight.normal_(std=_TOKEN_STD)
            module.text.embeddings.position_embedding.weight.normal_(std=_POSITION_STD)
            module.vision.embeddings.class_embedding.normal_(std=width**-0.5)
            module.vision.embeddings.position_embedding.weight.normal_(std=width**-0.5)
            module.logit_scale.fill_(FIRST_LOGIT_SCALE)
        return module

    def groups(self, module: nn.Module) -> Sequence[ParameterGroup]:
        return [ParameterGroup("clip", list(module.parameters()))]

    def load(self, draws: Draws) -> Batch:
        """Squares (B, 3, size, size) as CLIP reads them, the window (B, T) of one caption each, and that of a wrong
        one, all 0 where there is none. Raises `DataError` for a sample without caption."""
        seed, size = self.config.run.seed, len(self.dataset)
        samples = [self.dataset.sample(sample_index(number, size, seed)) for number in draws.numbers]
        pictures, tokens, wrong = [], [], []
        for sample, number in zip(samples, draws.numbers, strict=True):
            pictures.append(self._crop(sample.picture, draws.generator("crop", number)))
            generator = draws.generator("caption", number)
            if not sample.captions:
                raise DataError(f"sample {sample.key!r:.80} has no caption: give it one, or leave the sample out")
            caption = drawn_caption(sample.captions, 0.0, generator)
            harder = float(torch.rand((), generator=generator)) < self.config.hard_negatives
            other = hard_negative(caption, generator) if harder else None
            tokens.append(token_window(self.tokenizer, caption))
            wrong.append(torch.zeros_like(tokens[-1]) if other is None else token_window(self.tokenizer, other))
        return {"pictures": torch.stack(pictures), "tokens": torch.stack(tokens), "wrong": torch.stack(wrong)}

    def _crop(self, picture: Image.Image, generator: torch.Generator) -> Tensor:
        """A square cut at random, normalised: (3, image_size, image_size)."""
        side = self.config.vision.image_size
        whole = on_background(picture)
        zoom, x, y = torch.rand(3, generator=generator).tolist()
        shown = round(min(whole.size) * (1.0 - zoom * (1.0 - self.config.zoom)))
        left, top = round(x * (whole.width - shown)), round(y * (whole.height - shown))
        return preprocess(fitted(whole.crop((left, top, left + shown, top + shown)), side, side), side)

    def loss(self, module: nn.Module, batch: Batch, draws: Draws) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The scalar contrastive loss, and accuracy and logit scale, scalars."""
        assert isinstance(module, Clip)
        pictures = batch["pictures"]
        if self.config.run.channels_last:
            pictures = pictures.contiguous(memory_format=torch.channels_last)
        tokens, wrong = batch["tokens"], batch["wrong"]
        wrong = wrong[(wrong == self.tokenizer.eos_id).any(dim=1)] if self.config.hard_negatives else wrong[:0]
        images = module.embed_pictures(pictures).float()
        texts = module.embed_captions(torch.cat([tokens, wrong])).float()
        scale = module.logit_scale.clamp(max=LARGEST_LOGIT_SCALE).exp()
        same = (tokens[:, None] == tokens[None]).all(dim=2)
        loss, logits = contrast(images, texts[: len(tokens)], scale, same, texts[len(tokens) :])
        right = nn.functional.pad(same, (0, len(wrong))).gather(1, logits.argmax(dim=1, keepdim=True))
        return loss, {"accuracy": right.float().mean(), "logit_scale": scale}

    @torch.no_grad()
    def validate(self, module: nn.Module, picture: Path) -> Mapping[str, float]:
        """How often a held-out picture finds its caption among a hundred, and with the captions of others (the floor);
        a sheet with each above the picture whose caption it liked best. The score is minus the first."""
        assert isinstance(module, Clip)
        if len(self.held_out) < 2:
            return {}
        retriever = Retriever(model=module, tokenizer=self.tokenizer)
        side = self.config.vision.image_size
        squares = [fitted(on_background(sample.picture), side, side) for sample in self.held_out]
        pictures = retriever.pictures(squares)
        captions = retriever.captions([sample.captions[0] for sample in self.held_out])
        found = retrieval(pictures, captions, candidates=CANDIDATES)
        shuffled = retrieval(pictures.roll(1, 0), captions, candidates=CANDIDATES)
        best = (pictures @ captions.T).argmax(dim=1).tolist()
        shown = [(squares[i], squares[best[i]]) for i in range(min(_SHEET, len(squares)))]
        write_sheet(
            [torch.cat([scaled(to_bytes(own)), scaled(to_bytes(chosen))], dim=1) for own, chosen in shown], picture
        )
        return {"top1": found.top1, "top5": found.top5, "top1_shuffled": shuffled.top1, "score": -found.top1}


def contrast(images: Tensor, texts: Tensor, scale: Tensor, same: Tensor, wrong: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric InfoNCE (Radford et al. 2021, figure 3) of embeddings (B, D), and the logits (B, B + W) of the images.

    `same` (B, B) says whose captions are equal: each of those is right, and none counts against another. `wrong`
    (W, D) are captions that belong to no picture; the images must tell them from their own, too.
    """
    targets = same / same.sum(dim=1, keepdim=True)
    logits = scale * images @ torch.cat([texts, wrong]).T
    by_image = -(targets * logits.log_softmax(dim=1)[:, : len(texts)]).sum(dim=1).mean()
    by_text = -(targets * logits[:, : len(texts)].T.log_softmax(dim=1)).sum(dim=1).mean()
    return (by_image + by_text) / 2.0, logits
