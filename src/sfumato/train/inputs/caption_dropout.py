"""Captions to the token windows the text encoder is trained on: the very ones it is given when it is used."""

from __future__ import annotations

import torch
from torch import Tensor

from sfumato.prompt.tokenizer import Tokenizer


def drawn_caption(
    captions: tuple[str, ...], dropout: float, generator: torch.Generator, *, shuffle_tags: bool = False
) -> str:
    """Draw one of a picture's captions, or "" with probability `dropout`, or where there is none."""
    kept = float(torch.rand((), generator=generator)) >= dropout
    if not captions or not kept:
        return ""
    caption = captions[int(torch.randint(len(captions), (), generator=generator))]
    return tags_shuffled(caption, generator) if shuffle_tags else caption


def tags_shuffled(caption: str, generator: torch.Generator) -> str:
    """The parts between commas in another order, but for the first, which says what the picture shows."""
    first, *tags = (part.strip() for part in caption.split(","))
    return ", ".join([first, *(tags[i] for i in torch.randperm(len(tags), generator=generator).tolist())])


def token_window(tokenizer: Tokenizer, caption: str) -> Tensor:
    """Begin, the caption's tokens as far as they fit, end, padding: of shape (max_length,), as at inference."""
    return torch.tensor(tokenizer.window(caption))
