"""The single-file layout of the original program: names for a config, and a config from names and shapes.

Sources: the published files, and `ldm.modules.diffusionmodules.openaimodel.UNetModel`,
`ldm.models.autoencoder.AutoencoderKL` and `ldm.modules.ema.LitEma` of CompVis/stable-diffusion.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterator, Mapping
from typing import Literal

from sfumato.errors import CheckpointError
from sfumato.models import clip_text
from sfumato.models.autoencoder import AutoencoderConfig
from sfumato.models.clip_text import ClipTextConfig
from sfumato.models.unet_config import UNetConfig
from sfumato.weights.mapper import Layout

UNET = "model.diffusion_model."
AUTOENCODER = "first_stage_model."
TEXT_ENCODER = "cond_stage_model."
EMA = "model_ema."

Shapes = Mapping[str, tuple[int, ...]]
Pairs = Iterator[tuple[str, str]]

# The training schedule as buffers, and the counters of the EMA: known, and not needed.
IGNORED_KEYS = (
    "betas",
    "alphas_cumprod*",
    "sqrt_*",
    "log_one_minus_alphas_cumprod",
    "posterior_*",
    "lvlb_weights",
    "logvar",
    "scale_factor",
    "model_ema.*",
    "global_step",
    "epoch",
)

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_AUTOENCODER_ATTENTION = {"to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out", "group_norm": "norm"}


def text_layout() -> Layout:
    """transformers' names below `cond_stage_model.transformer.`, with or without `text_model.`."""
    return clip_text.layout(f"{TEXT_ENCODER}transformer.text_model.", f"{TEXT_ENCODER}transformer.")


def unet_layout(config: UNetConfig, *, ema: bool = False) -> Layout:
    """The UNet's names for this shape. `ema`: its exponential moving average, whose names have lost their dots."""
    return Layout(
        modules={ours: (UNET + theirs,) for ours, theirs in _unet_modules(config)},
        spelling=_ema_name if ema else None,
    )


def autoencoder_layout(config: AutoencoderConfig, *, prefix: str = AUTOENCODER) -> Layout:
    """The autoencoder's names for this shape. The loss it was trained with may be in the file too."""
    attentions = ("encoder.mid_block.attentions.0", "decoder.mid_block.attentions.0")
    training = () if prefix else IGNORED_KEYS  # a file of its own has the training's beside the model
    return Layout(
        modules={ours: (prefix + theirs,) for ours, theirs in _autoencoder_modules(config)},
        ignored=(f"{prefix}loss.*", f"{prefix}model_ema.*", *training),
        kernels=frozenset(f"{attention}.{name}" for attention in attentions for name in _AUTOENCODER_ATTENTION),
    )


def _ema_name(name: str) -> str:
    return EMA + name.removeprefix("model.").replace(".", "")


def _unet_modules(config: UNetConfig) -> Pairs:
    levels = len(config.block_channels)

    def resnet(ours: str, theirs: str) -> Pairs:
        yield from ((f"{ours}.{a}", f"{theirs}.{b}") for a, b in _RESNET.items())

    yield from (("time_embedding.linear_1", "time_embed.0"), ("time_embedding.linear_2", "time_embed.2"))
    yield "conv_in", "input_blocks.0.0"
    n = 1
    for level in range(levels):
        for j in range(config.layers_per_block):
            yield from resnet(f"down_blocks.{level}.resnets.{j}", f"input_blocks.{n}.0")
            yield f"down_blocks.{level}.attentions.{j}", f"input_blocks.{n}.1"
            n += 1
        if level < levels - 1:
            yield f"down_blocks.{level}.downsamplers.0.conv", f"input_blocks.{n}.0.op"
            n += 1
    yield from resnet("mid_block.resnets.0", "middle_block.0")
    yield "mid_block.attentions.0", "middle_block.1"
    yield from resnet("mid_block.resnets.1", "middle_block.2")
    n = 0
    for i, level in enumerate(reversed(range(levels))):
        for j in range(config.layers_per_block + 1):
            yield from resnet(f"up_blocks.{i}.resnets.{j}", f"output_blocks.{n}.0")
            yield f"up_blocks.{i}.attentions.{j}", f"output_blocks.{n}.1"
            n += 1
        if level > 0:
            place = 2 if config.attention[level] else 1
            yield f"up_blocks.{i}.upsamplers.0.conv", f"output_blocks.{n - 1}.{place}.conv"
    yield from (("conv_norm_out", "out.0"), ("conv_out", "out.2"))


def _autoencoder_modules(config: AutoencoderConfig) -> Pairs:
    last = len(config.block_channels) - 1

    def resnet(ours: str, theirs: str) -> Pairs:
        yield ours, theirs
        yield f"{ours}.conv_shortcut", f"{theirs}.nin_shortcut"

    yield from ((name, name) for name in ("quant_conv", "post_quant_conv"))
    for side in ("encoder", "decoder"):
        yield from ((f"{side}.conv_in", f"{side}.conv_in"), (f"{side}.conv_norm_out", f"{side}.norm_out"))
        yield f"{side}.conv_out", f"{side}.conv_out"
        for j in range(2):
            yield from resnet(f"{side}.mid_block.resnets.{j}", f"{side}.mid.block_{j + 1}")
        for ours, theirs in _AUTOENCODER_ATTENTION.items():
            yield f"{side}.mid_block.attentions.0.{ours}", f"{side}.mid.attn_1.{theirs}"
    for i in range(last + 1):
        for j in range(config.layers_per_block):
            yield from resnet(f"encoder.down_blocks.{i}.resnets.{j}", f"encoder.down.{i}.block.{j}")
        yield f"encoder.down_blocks.{i}.downsamplers.0.conv", f"encoder.down.{i}.downsample.conv"
        # CompVis numbers the decoder's levels from the largest map down
        for j in range(config.layers_per_block + 1):
            yield from resnet(f"decoder.up_blocks.{i}.resnets.{j}", f"decoder.up.{last - i}.block.{j}")
        yield f"decoder.up_blocks.{i}.upsamplers.0.conv", f"decoder.up.{last - i}.upsample.conv"


def infer_unet(shapes: Shapes) -> UNetConfig:
    """The UNet's config from a single file's names and shapes, as v1 and its fine-tunes store it.

    Head counts and norm groups leave no trace in the shapes: the v1 rule (8 heads) holds for contexts of other widths
    than 1024, the v2 rule (64 channels a head) for 1024; 32 groups always. Raises `CheckpointError`.
    """
    if f"{UNET}input_blocks.0.0.weight" not in shapes:
        raise CheckpointError(f"no Stable Diffusion UNet in this file ({UNET}input_blocks.0.0.weight is missing)")
    blocks = 1 + max(int(m[1]) for name in shapes if (m := re.match(rf"{re.escape(UNET)}input_blocks\.(\d+)\.", name)))
    channels: list[int] = []
    attention: list[bool] = []
    depth: list[int] = []
    layers = 0
    fresh = True
    for n in range(1, blocks):
        if f"{UNET}input_blocks.{n}.0.op.weight" in shapes:
            fresh = True
            continue
        if fresh:
            channels.append(_shape(shapes, f"{UNET}input_blocks.{n}.0.out_layers.3.weight")[0])
            attention.append(f"{UNET}input_blocks.{n}.1.norm.weight" in shapes)
            depth.append(_count(shapes, rf"{re.escape(UNET)}input_blocks\.{n}\.1\.transformer_blocks\.(\d+)\.") or 1)
            layers, fresh = 0, False
        layers += 1
    transformer = f"{UNET}middle_block.1."
    context = _shape(shapes, f"{transformer}transformer_blocks.0.attn2.to_k.weight")[1]
    return UNetConfig(
        in_channels=_shape(shapes, f"{UNET}input_blocks.0.0.weight")[1],
        out_channels=_shape(shapes, f"{UNET}out.2.weight")[0],
        block_channels=tuple(channels),
        attention=tuple(attention),
        layers_per_block=layers,
        heads=tuple(c // 64 for c in channels) if context == 1024 else (8,) * len(channels),
        depth=tuple(depth),
        context_dim=context,
        linear_projection=len(_shape(shapes, f"{transformer}proj_in.weight")) == 2,
    )


def infer_autoencoder(shapes: Shapes, *, prefix: str = AUTOENCODER) -> AutoencoderConfig:
    """The autoencoder's config from a single file's names and shapes. Raises `CheckpointError`."""
    if f"{prefix}encoder.conv_in.weight" not in shapes:
        raise CheckpointError(f"no autoencoder in this file ({prefix}encoder.conv_in.weight is missing)")
    levels = _count(shapes, rf"{re.escape(prefix)}encoder\.down\.(\d+)\.block\.")
    return AutoencoderConfig(
        in_channels=_shape(shapes, f"{prefix}encoder.conv_in.weight")[1],
        out_channels=_shape(shapes, f"{prefix}decoder.conv_out.weight")[0],
        latent_channels=_shape(shapes, f"{prefix}decoder.conv_in.weight")[1],
        block_channels=tuple(
            _shape(shapes, f"{prefix}encoder.down.{i}.block.0.conv2.weight")[0] for i in range(levels)
        ),
        layers_per_block=_count(shapes, rf"{re.escape(prefix)}encoder\.down\.0\.block\.(\d+)\."),
        quant_conv=f"{prefix}quant_conv.weight" in shapes,
    )


def infer_text(shapes: Shapes) -> ClipTextConfig:
    """The text encoder's config from a single file's names and shapes: CLIP as v1 uses it. Raises `CheckpointError`."""
    base = f"{TEXT_ENCODER}transformer."
    if f"{base}text_model.final_layer_norm.weight" in shapes:
        base += "text_model."
    elif any(name.startswith(f"{TEXT_ENCODER}model.") for name in shapes):
        raise CheckpointError("this file holds SD 2.x's OpenCLIP text encoder: load that model as a diffusers folder")
    elif f"{base}final_layer_norm.weight" not in shapes:
        raise CheckpointError(
            f"no CLIP text encoder in this file ({base}text_model.final_layer_norm.weight is missing)"
        )
    vocab_size, width = _shape(shapes, f"{base}embeddings.token_embedding.weight")
    return ClipTextConfig(
        vocab_size=vocab_size,
        positions=_shape(shapes, f"{base}embeddings.position_embedding.weight")[0],
        width=width,
        hidden=_shape(shapes, f"{base}encoder.layers.0.mlp.fc1.weight")[0],
        layers=_count(shapes, rf"{re.escape(base)}encoder\.layers\.(\d+)\."),
        heads=max(1, width // 64),
    )


def has_ema(names: Container[str]) -> bool:
    """Whether the file holds the UNet's moving average beside its last step."""
    return _ema_name(f"{UNET}out.2.weight") in names


def autoencoder_kind(shapes: Shapes) -> tuple[Literal["diffusers", "compvis"], str]:
    """Layout and prefix of the autoencoder in a file of its own or in a whole model. Raises `CheckpointError`."""
    if "encoder.down_blocks.0.resnets.0.norm1.weight" in shapes:
        return "diffusers", ""
    for prefix in (AUTOENCODER, ""):
        if f"{prefix}encoder.down.0.block.0.norm1.weight" in shapes:
            return "compvis", prefix
    raise CheckpointError("no autoencoder of a known layout in this file")


def _shape(shapes: Shapes, name: str) -> tuple[int, ...]:
    if name not in shapes:
        raise CheckpointError(f"incomplete: {name} is missing")
    return shapes[name]


def _count(shapes: Shapes, pattern: str) -> int:
    """How many different numbers the group of `pattern` takes over the names."""
    compiled = re.compile(pattern)
    return len({match[1] for name in shapes if (match := compiled.match(name))})
