"""CLIP's image tower: pixels to one projected embedding a picture (Radford et al. 2021). Defaults are ViT-L/14."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Self

import torch
from torch import Tensor, nn

from sfumato.errors import InvalidConfig
from sfumato.models.config_checks import one_of, positive, positive_numbers, require_fields
from sfumato.nn.clip_layers import ACTIVATIONS, ClipEncoder
from sfumato.weights.mapper import Layout


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipVisionConfig:
    """Shape of the image encoder and its projection. Wrong values raise `InvalidConfig`."""

    image_size: Annotated[int, "side of the pictures, pixels"] = 224
    patch_size: Annotated[int, "side of what becomes one token, pixels"] = 14
    width: Annotated[int, "of the states"] = 1024
    hidden: Annotated[int, "of the MLPs"] = 4096
    layers: Annotated[int, "of the transformer"] = 24
    heads: Annotated[int, "of the attention"] = 16
    projection_dim: Annotated[int, "of the embeddings"] = 768
    activation: Annotated[str, "quick_gelu or gelu"] = "quick_gelu"
    eps: Annotated[float, "of the norms"] = 1e-5

    def __post_init__(self) -> None:
        positive(
            "image encoder",
            image_size=self.image_size,
            patch_size=self.patch_size,
            width=self.width,
            hidden=self.hidden,
            layers=self.layers,
            heads=self.heads,
            projection_dim=self.projection_dim,
        )
        if self.image_size % self.patch_size:
            raise InvalidConfig(
                f"image encoder: size {self.image_size} doesn't divide into patches of {self.patch_size}"
            )
        if self.width % self.heads:
            raise InvalidConfig(f"image encoder: width {self.width} doesn't divide into {self.heads} heads")
        one_of("image encoder", ACTIVATIONS, activation=self.activation)
        positive_numbers("image encoder", eps=self.eps)

    @classmethod
    def from_published(cls, values: Mapping[str, Any]) -> Self:
        """The config in transformers' of CLIP: a whole model's (with `vision_config`), or the image tower's alone.
        Raises `InvalidConfig`."""
        vision = values.get("vision_config", values)
        if not isinstance(vision, Mapping):
            raise InvalidConfig(
                f"image encoder: vision_config must be an object of fields, not {type(vision).__name__}"
            )
        require_fields("image encoder", vision, ("hidden_size", "intermediate_size", "num_hidden_layers"))
        return cls(
            image_size=vision.get("image_size", 224),
            patch_size=vision.get("patch_size", 32),
            width=vision["hidden_size"],
            hidden=vision["intermediate_size"],
            layers=vision["num_hidden_layers"],
            heads=vision.get("num_attention_heads", 12),
            projection_dim=values.get("projection_dim", vision.get("projection_dim", 512)),
            activation=vision.get("hidden_act", "quick_gelu"),
            eps=vision.get("layer_norm_eps", 1e-5),
        )


class ClipVisionEmbeddings(nn.Module):
    def __init__(self, config: ClipVisionConfig) -> None:
        super().__init__()
        self.class_embedding = nn.Parameter(torch.zeros(config.width))
        self.patch_embedding = nn.Conv2d(3, config.width, config.patch_size, stride=config.patch_size, bias=False)
        positions = (config.image_size // config.patch_size) ** 2 + 1
        self.position_embedding = nn.Embedding(positions, config.width)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) → (B, 1 + patches, width)"""
        patches = self.patch_embedding(pixels).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(pixels.shape[0], 1, -1)
        out: Tensor = torch.cat([first, patches], dim=1) + self.position_embedding.weight
        return out


class ClipVision(nn.Module):
    """Vision transformer; its class token, normed and projected, is the picture's embedding."""

    def __init__(self, config: ClipVisionConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = ClipVisionEmbeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.width, eps=config.eps)  # the published spelling
        self.encoder = ClipEncoder(
            config.width,
            config.heads,
            config.hidden,
            config.layers,
            activation=config.activation,
            eps=config.eps,
            causal=False,
        )
        self.post_layernorm = nn.LayerNorm(config.width, eps=config.eps)
        self.visual_projection = nn.Linear(config.width, config.projection_dim, bias=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalised pixels (B, 3, image_size, image_size) → embeddings (B, projection_dim), not normalised."""
        hidden = self.encoder(self.pre_layrnorm(self.embeddings(pixels)), self.config.layers)
        out: Tensor = self.visual_projection(self.post_layernorm(hidden[:, 0]))
        return out


def layout(*prefixes: str, ignored: tuple[str, ...] = ()) -> Layout:
    """Names with the tower's modules below any of `prefixes` and the projection beside them."""
    tower = ("embeddings", "pre_layrnorm", "encoder", "post_layernorm")
    return Layout(
        modules={part: tuple(prefix + part for prefix in prefixes) for part in tower}
        | {"visual_projection": ("visual_projection",)},
        ignored=(*(f"{prefix}embeddings.position_ids" for prefix in prefixes), *ignored),
    )


# The safety checker's file nests the tower once or twice, by the version that wrote it.
SAFETY_CHECKER = layout(
    "vision_model.vision_model.",
    "vision_model.",
    ignored=("concept_embeds*", "special_care_embeds*"),
)
