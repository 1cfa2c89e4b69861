"""The denoiser's shape, and its two ways through the published JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Self

from sfumato.errors import InvalidConfig
from sfumato.models.config_checks import divisible, flags, positive, require_fields, require_list, require_values


@dataclass(frozen=True, slots=True, kw_only=True)
class UNetConfig:
    """Shape of the denoiser; defaults are Stable Diffusion v1.

    `attention`, `heads` and `depth` (transformer blocks) have one value a level. Wrong values raise `InvalidConfig`.
    """

    in_channels: Annotated[int, "of the latents; 9 for inpainting"] = 4
    out_channels: Annotated[int, "of the answer"] = 4
    block_channels: Annotated[tuple[int, ...], "of each level, the finest first"] = (320, 640, 1280, 1280)
    attention: Annotated[tuple[bool, ...], "which levels attend to the text"] = (True, True, True, False)
    layers_per_block: Annotated[int, "residual blocks a level"] = 2
    heads: Annotated[tuple[int, ...], "of the attention, a level"] = (8, 8, 8, 8)
    depth: Annotated[tuple[int, ...], "transformer blocks in each place, a level"] = (1, 1, 1, 1)
    context_dim: Annotated[int, "width of the text encoder's states"] = 768
    norm_groups: Annotated[int, "of the group norms; they divide every block_channels"] = 32
    linear_projection: Annotated[bool, "around the transformers: linear layers, not 1×1 convolutions"] = False
    upcast_attention: Annotated[bool, "compute attention's products in float32"] = False
    sample_size: Annotated[int, "side of the latents it is trained on"] = 64

    def __post_init__(self) -> None:
        positive(
            "UNet",
            in_channels=self.in_channels,
            out_channels=self.out_channels,
            layers_per_block=self.layers_per_block,
            context_dim=self.context_dim,
            norm_groups=self.norm_groups,
            sample_size=self.sample_size,
        )
        flags("UNet", linear_projection=self.linear_projection, upcast_attention=self.upcast_attention)
        levels = len(self.block_channels)
        positive("UNet", levels=levels)
        if not len(self.attention) == len(self.heads) == len(self.depth) == levels:
            raise InvalidConfig("UNet: block_channels, attention, heads and depth need one value a level")
        for channels, heads, depth in zip(self.block_channels, self.heads, self.depth, strict=True):
            positive("UNet", block_channels=channels, heads=heads, depth=depth)
            if channels % heads:
                raise InvalidConfig(f"UNet: {channels} channels don't divide into {heads} heads")
        divisible("UNet", groups=self.norm_groups, channels=self.block_channels)
        blocks = sum(self.depth) * (2 * self.layers_per_block + 1)
        if blocks > _MAX_BLOCKS:
            raise InvalidConfig(
                f"UNet: layers_per_block and depth make {blocks} transformer blocks: at most {_MAX_BLOCKS}"
            )

    @classmethod
    def from_published(cls, values: Mapping[str, Any]) -> Self:
        """The config in diffusers' `unet/config.json`. Raises `InvalidConfig`."""
        require_fields("UNet", values, ("block_out_channels", "down_block_types", "cross_attention_dim"))
        require_values("UNet", values, _FIXED)
        down = require_list("UNet", "down_block_types", values["down_block_types"])
        levels = len(down)
        kinds = {"CrossAttnDownBlock2D": True, "DownBlock2D": False}
        require_values("UNet", {f"down_block_types[{i}]": kind for i, kind in enumerate(down)}, {
            f"down_block_types[{i}]": tuple(kinds) for i in range(levels)
        })  # fmt: skip
        mirrored = [kind.replace("Down", "Up") for kind in reversed(down)]
        require_values("UNet", values, {"up_block_types": (mirrored,)})
        # "attention_head_dim" of the published configs is the number of heads; a later field says so by its name.
        heads = values.get("num_attention_heads") or values.get("attention_head_dim", 8)
        depth = values.get("transformer_layers_per_block", 1)
        return cls(
            in_channels=values.get("in_channels", 4),
            out_channels=values.get("out_channels", 4),
            block_channels=require_list("UNet", "block_out_channels", values["block_out_channels"]),
            attention=tuple(kinds[kind] for kind in down),
            layers_per_block=values.get("layers_per_block", 2),
            heads=_per_level("attention_head_dim", heads, levels),
            depth=_per_level("transformer_layers_per_block", depth, levels),
            context_dim=values["cross_attention_dim"],
            norm_groups=values.get("norm_num_groups", 32),
            linear_projection=values.get("use_linear_projection", False),
            upcast_attention=values.get("upcast_attention", False),
            sample_size=values.get("sample_size") or 64,
        )

    def to_published(self) -> dict[str, Any]:
        """The published JSON of this config: the inverse of `from_published`."""
        down = ["CrossAttnDownBlock2D" if attends else "DownBlock2D" for attends in self.attention]
        return {
            "_class_name": "UNet2DConditionModel",
            "_diffusers_version": "0.12.0",
            "act_fn": "silu",
            "attention_head_dim": _one_or_list(self.heads),
            "block_out_channels": list(self.block_channels),
            "center_input_sample": False,
            "cross_attention_dim": self.context_dim,
            "down_block_types": down,
            "downsample_padding": 1,
            "flip_sin_to_cos": True,
            "freq_shift": 0,
            "in_channels": self.in_channels,
            "layers_per_block": self.layers_per_block,
            "mid_block_scale_factor": 1,
            "mid_block_type": "UNetMidBlock2DCrossAttn",
            "norm_eps": 1e-05,
            "norm_num_groups": self.norm_groups,
            "out_channels": self.out_channels,
            "sample_size": self.sample_size,
            "transformer_layers_per_block": _one_or_list(self.depth),
            "up_block_types": [kind.replace("Down", "Up") for kind in reversed(down)],
            "upcast_attention": self.upcast_attention,
            "use_linear_projection": self.linear_projection,
        }


# Fields of the published config whose other values are other networks.
_FIXED: Mapping[str, tuple[Any, ...]] = {
    "act_fn": ("silu",),
    "addition_embed_type": (None,),
    "center_input_sample": (False,),
    "class_embed_type": (None,),
    "num_class_embeds": (None,),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "cross_attention_norm": (None,),
    "downsample_padding": (1,),
    "dual_cross_attention": (False,),
    "encoder_hid_dim": (None,),
    "flip_sin_to_cos": (True,),
    "freq_shift": (0,),
    "mid_block_scale_factor": (1, 1.0),
    "mid_block_type": ("UNetMidBlock2DCrossAttn",),
    "norm_eps": (1e-5,),
    "only_cross_attention": (False,),
    "resnet_time_scale_shift": ("default",),
    "time_embedding_type": ("positional",),
    "time_cond_proj_dim": (None,),
}


# Not in the way of any published model (SDXL has 70); a hostile config would take minutes to build.
_MAX_BLOCKS = 1000


def _per_level(name: str, value: int | list[int], levels: int) -> tuple[int, ...]:
    return (value,) * levels if isinstance(value, int) else require_list("UNet", name, value)


def _one_or_list(values: tuple[int, ...]) -> int | list[int]:
    return values[0] if len(set(values)) == 1 else list(values)
