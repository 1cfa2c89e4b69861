"""Each model against diffusers or transformers: random weights through our layout maps, same inputs, same outputs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor

import sfumato
from sfumato.engines.engine import eager
from sfumato.models import autoencoder, clip_text, clip_vision, unet
from sfumato.models.unet_config import UNetConfig
from sfumato.models.unet_inputs import Residuals, UNetInputs
from sfumato.nn.empty import empty_modules
from support.in_memory import load
from support.tiny import (
    AUTOENCODERS,
    TEXT_ENCODERS,
    UNETS,
    diffusers_autoencoder,
    diffusers_unet,
    randomise,
    transformers_text,
)

ASSETS = Path(sfumato.__file__).parent / "assets"
TINY = autoencoder.AutoencoderConfig(block_channels=(8,), layers_per_block=1, norm_groups=4)


def assert_close(ours: Tensor, reference: Tensor) -> None:
    """Within 2e-5 of the output's own spread, the promise of docs/numerics.md."""
    assert ours.shape == reference.shape
    assert (ours - reference).abs().max().item() <= 2e-5 * reference.std().item()


def gaussian(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", UNETS)
def test_unet_matches_diffusers(name: str) -> None:
    reference = diffusers_unet(name)
    config = UNetConfig.from_published(dict(reference.config))
    ours = load(unet.UNet, config, unet.DIFFUSERS, reference.state_dict())
    x = gaussian(2, config.in_channels, 16, 24)
    context = gaussian(2, 7, config.context_dim, seed=2)
    t = torch.tensor([981.0, 12.5])
    assert_close(ours(x, t, context), reference(x, t, context).sample)


@pytest.mark.parametrize("name", UNETS)
def test_unet_takes_the_same_latents_under_several_contexts(name: str) -> None:
    reference = diffusers_unet(name)
    config = UNetConfig.from_published(dict(reference.config))
    ours = load(unet.UNet, config, unet.DIFFUSERS, reference.state_dict())
    x, context = gaussian(2, config.in_channels, 9, 16), gaussian(6, 7, config.context_dim, seed=2)
    expected = reference(x.repeat(3, 1, 1, 1), torch.tensor(981.0), context).sample
    assert_close(ours(x, torch.tensor([981.0]), context), expected)


@pytest.mark.parametrize("given", ["ControlNet", "T2I-Adapter", "both"])
@pytest.mark.parametrize("name", sorted(set(UNETS) - {"attention below"}))
@torch.inference_mode()
def test_residuals_of_adapters_are_added_where_diffusers_adds_them(name: str, given: str) -> None:
    """A level that doesn't attend, and isn't the last, diffusers gives a T2I-Adapter's behind its downsampler; v1 has
    none."""
    reference = diffusers_unet(name)
    config = UNetConfig.from_published(dict(reference.config))
    ours = eager(load(unet.UNet, config, unet.DIFFUSERS, reference.state_dict()), autoencoder.Autoencoder(TINY))
    x, t, context = gaussian(2, config.in_channels, 16, 24), torch.tensor([500.0]), gaussian(2, 7, config.context_dim)
    channels = config.block_channels
    sizes = [(2, c, 16 >> level, 24 >> level) for level, c in enumerate(channels)]
    shapes = [(2, channels[0], 16, 24)]
    for level, (size, smaller) in enumerate(zip(sizes, [*sizes[1:], None], strict=True)):
        shapes += [size] * config.layers_per_block
        shapes += [(2, channels[level], *smaller[2:])] if smaller else []
    skips = tuple(gaussian(*shape, seed=i) for i, shape in enumerate(shapes)) if given != "T2I-Adapter" else ()
    middle = gaussian(*shapes[-1], seed=50) if skips else None
    levels = tuple(gaussian(*size, seed=60 + i) for i, size in enumerate(sizes)) if given != "ControlNet" else ()
    expected = reference(
        x,
        t[0],
        context,
        down_block_additional_residuals=skips or None,
        mid_block_additional_residual=middle,
        down_intrablock_additional_residuals=list(levels) or None,
    ).sample
    residuals = Residuals(skips=skips, middle=middle, levels=levels)
    assert ours.adapts
    found = ours.unet(UNetInputs(latents=x, timesteps=t, context=context, residuals=residuals))
    assert_close(found, expected)
    assert (found - reference(x, t[0], context).sample).std() > 1e-2 * expected.std()


@pytest.mark.parametrize("size", [(9, 16), (10, 10), (3, 5), (2, 3)])
def test_unet_matches_diffusers_at_sizes_that_do_not_halve(size: tuple[int, int]) -> None:
    reference = diffusers_unet("v1-like")
    config = UNetConfig.from_published(dict(reference.config))
    ours = load(unet.UNet, config, unet.DIFFUSERS, reference.state_dict())
    x, context, t = gaussian(1, 4, *size), gaussian(1, 7, 24, seed=2), torch.tensor([500.0])
    assert_close(ours(x, t, context), reference(x, t, context).sample)


@pytest.mark.parametrize("name", AUTOENCODERS)
def test_autoencoder_matches_diffusers(name: str) -> None:
    reference = diffusers_autoencoder(name)
    config = autoencoder.AutoencoderConfig.from_published(dict(reference.config))
    ours = load(autoencoder.Autoencoder, config, autoencoder.DIFFUSERS, reference.state_dict())
    images = gaussian(2, 3, 32, 48)
    posterior, expected = ours.encode(images), reference.encode(images).latent_dist
    assert_close(posterior.mean, expected.mean)
    assert_close(posterior.logvar, expected.logvar)
    latents = gaussian(2, config.latent_channels, 4, 6)
    assert_close(ours.decode(latents), reference.decode(latents).sample)
    assert config.factor * posterior.mean.shape[-1] == 48


@pytest.mark.parametrize("name", TEXT_ENCODERS)
@pytest.mark.parametrize("clip_skip", [0, 1])
def test_text_encoder_matches_transformers(name: str, clip_skip: int) -> None:
    reference = transformers_text(name)
    config = clip_text.ClipTextConfig.from_published(reference.config.to_dict())
    ours = load(clip_text.ClipText, config, clip_text.DIFFUSERS, reference.state_dict())
    ids = torch.randint(0, 198, (3, config.positions), generator=torch.Generator().manual_seed(3))
    ids[:, 5:] = 199
    output = reference(ids, output_hidden_states=True)
    final_norm = getattr(reference, "text_model", reference).final_layer_norm
    assert_close(ours(ids, clip_skip=clip_skip), final_norm(output.hidden_states[-1 - clip_skip]))


def test_text_encoder_reads_names_with_and_without_the_prefix() -> None:
    reference = transformers_text("short")
    config = clip_text.ClipTextConfig.from_published(reference.config.to_dict())
    bare = {name.removeprefix("text_model."): tensor for name, tensor in reference.state_dict().items()}
    prefixed = {f"text_model.{name}": tensor for name, tensor in bare.items()}
    ids = torch.arange(32)[None]
    a, b = (load(clip_text.ClipText, config, clip_text.DIFFUSERS, names)(ids) for names in (bare, prefixed))
    assert torch.equal(a, b)


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_image_encoder_matches_transformers(activation: str) -> None:
    published = transformers.CLIPVisionConfig(
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=28,
        patch_size=7,
        projection_dim=20,
        hidden_act=activation,
    )
    reference = randomise(transformers.CLIPVisionModelWithProjection(published), 0)
    config = clip_vision.ClipVisionConfig.from_published(published.to_dict())
    layout = clip_vision.layout("vision_model.")
    ours = load(clip_vision.ClipVision, config, layout, reference.state_dict())
    pixels = gaussian(2, 3, 28, 28)
    assert_close(ours(pixels), reference(pixels).image_embeds)


def test_default_shapes_are_v1() -> None:
    with empty_modules():
        models = unet.UNet(UNetConfig()), autoencoder.Autoencoder(autoencoder.AutoencoderConfig())
        text = clip_text.ClipText(clip_text.ClipTextConfig())
    counts = [sum(p.numel() for p in model.parameters()) for model in (*models, text)]
    assert counts == [859_520_964, 83_653_863, 123_060_480]


@pytest.mark.parametrize(
    ("config", "file"),
    [
        (UNetConfig, "unet"),
        (autoencoder.AutoencoderConfig, "vae"),
        (clip_text.ClipTextConfig, "text_encoder"),
    ],
)
@pytest.mark.parametrize("model", ["v1", "pocket"])
def test_configs_round_trip_to_the_published_json(config: type, file: str, model: str) -> None:
    published = json.loads((ASSETS / model / file / "config.json").read_text())
    ours = config.from_published(published)
    if model == "v1":
        assert ours == config()
    written = ours.to_published()
    assert config.from_published(written) == ours
    for name, value in written.items():
        if name in published and not name.startswith("_") and name != "sample_size":
            assert value == published[name], name
