"""Captions to the token windows the text encoder is trained on: the very ones it is given when it is used."""

from __future__ import annotations

import torch
from torch import Tensor

from sfumato.prompt.tokenizer import Tokenizer


def drawn_caption(captions: tuple[str, ...], dropout: float, generator: torch.Generator) -> str:
    """One of a picture's captions, or "" with probability `dropout`, or where there is none."""
    kept = float(torch.rand((), generator=generator)) >= dropout
    if not captions or not kept:
        return ""
    return captions[int(torch.randint(len(captions), (), generator=generator))]


def token_window(tokenizer: Tokenizer, caption: str) -> Tensor:
    """Begin, the caption's tokens as far as they fit, end, padding: (max_length,) as at inference."""
    return torch.tensor(tokenizer.window(caption))
