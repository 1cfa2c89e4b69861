"""CLIP's text tower: token ids to one context vector a token (Radford et al. 2021). Defaults are ViT-L/14, SD v1's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Self

from torch import Tensor, nn

from sfumato.errors import InvalidConfig
from sfumato.models.config_checks import one_of, positive, positive_numbers, require_fields, require_values
from sfumato.nn.clip_layers import ACTIVATIONS, ClipEncoder
from sfumato.weights.mapper import Layout


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipTextConfig:
    """Shape of the text encoder. Defaults are Stable Diffusion v1. Wrong values raise `InvalidConfig`."""

    vocab_size: Annotated[int, "tokens that there are"] = 49408
    positions: Annotated[int, "tokens in a window"] = 77
    width: Annotated[int, "of the states"] = 768
    hidden: Annotated[int, "of the MLPs"] = 3072
    layers: Annotated[int, "of the transformer"] = 12
    heads: Annotated[int, "of the attention"] = 12
    activation: Annotated[str, "quick_gelu or gelu"] = "quick_gelu"
    eps: Annotated[float, "of the norms"] = 1e-5

    def __post_init__(self) -> None:
        positive(
            "text encoder",
            vocab_size=self.vocab_size,
            positions=self.positions,
            width=self.width,
            hidden=self.hidden,
            layers=self.layers,
            heads=self.heads,
        )
        if self.width % self.heads:
            raise InvalidConfig(f"text encoder: width {self.width} doesn't divide into {self.heads} heads")
        one_of("text encoder", ACTIVATIONS, activation=self.activation)
        positive_numbers("text encoder", eps=self.eps)

    @classmethod
    def from_published(cls, values: Mapping[str, Any]) -> Self:
        """The config in transformers' `text_encoder/config.json`. Raises `InvalidConfig`."""
        require_values("text encoder", values, {"model_type": ("clip_text_model",)})
        require_fields(
            "text encoder",
            values,
            ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
        )
        return cls(
            vocab_size=values["vocab_size"],
            positions=values.get("max_position_embeddings", 77),
            width=values["hidden_size"],
            hidden=values["intermediate_size"],
            layers=values["num_hidden_layers"],
            heads=values["num_attention_heads"],
            activation=values.get("hidden_act", "quick_gelu"),
            eps=values.get("layer_norm_eps", 1e-5),
        )

    def to_published(self) -> dict[str, Any]:
        """The published JSON of this config: the inverse of `from_published`."""
        return {
            "architectures": ["CLIPTextModel"],
            "model_type": "clip_text_model",
            "vocab_size": self.vocab_size,
            "max_position_embeddings": self.positions,
            "hidden_size": self.width,
            "intermediate_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "hidden_act": self.activation,
            "layer_norm_eps": self.eps,
            "projection_dim": self.width,
            "torch_dtype": "float32",
        }


class ClipTextEmbeddings(nn.Module):
    def __init__(self, config: ClipTextConfig) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocab_size, config.width)
        self.position_embedding = nn.Embedding(config.positions, config.width)

    def forward(self, ids: Tensor) -> Tensor:
        """(B, T) → (B, T, width)"""
        out: Tensor = self.token_embedding(ids) + self.position_embedding.weight[: ids.shape[1]]
        return out


class ClipText(nn.Module):
    """Causal transformer over token ids."""

    def __init__(self, config: ClipTextConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = ClipTextEmbeddings(config)
        self.encoder = ClipEncoder(
            config.width,
            config.heads,
            config.hidden,
            config.layers,
            activation=config.activation,
            eps=config.eps,
            causal=True,
        )
        self.final_layer_norm = nn.LayerNorm(config.width, eps=config.eps)

    def forward(self, ids: Tensor, *, clip_skip: int = 0) -> Tensor:
        """Token ids (B, T) → hidden states (B, T, width) after the final LayerNorm.

        `clip_skip` leaves out that many of the last layers (1 is what other programs call "clip skip 2"). Raises
        `InvalidConfig` where it leaves none.
        """
        depth = self.config.layers - clip_skip
        if not 1 <= depth <= self.config.layers:
            raise InvalidConfig(f"clip_skip {clip_skip}: this text encoder has {self.config.layers} layers")
        out: Tensor = self.final_layer_norm(self.encoder(self.embeddings(ids), depth))
        return out


def layout(*prefixes: str) -> Layout:
    """Our names are transformers'; only what stands before them differs."""
    parts = ("embeddings", "encoder", "final_layer_norm")
    return Layout(
        modules={part: tuple(prefix + part for prefix in prefixes) for part in parts},
        ignored=(*(f"{prefix}embeddings.position_ids" for prefix in prefixes), "text_projection.weight"),
    )


# transformers 5 dropped the prefix when writing; files of both kinds are about, and it reads both.
DIFFUSERS = layout("text_model.", "")
