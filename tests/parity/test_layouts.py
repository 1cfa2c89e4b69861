"""The CompVis single-file names, against diffusers' own conversion code; and configs read back from shapes."""

from __future__ import annotations

import pytest
import torch
from diffusers.loaders import single_file_utils
from torch import Tensor, nn

from sfumato.errors import CheckpointError
from sfumato.models import autoencoder, clip_text, compvis, unet
from sfumato.models.unet_config import UNetConfig
from sfumato.nn.empty import empty_modules
from sfumato.weights.mapper import Layout, match, written_entries
from support.in_memory import InMemory, load
from support.tiny import diffusers_autoencoder, diffusers_unet, transformers_text


def written(module: nn.Module, layout: Layout) -> dict[str, Tensor]:
    """The tensors a file of this layout would hold."""
    state = module.state_dict()
    return {entry.theirs: state[entry.ours].reshape(entry.shape) for entry in written_entries(module, layout)}


def our_unet(name: str) -> unet.UNet:
    reference = diffusers_unet(name)
    config = UNetConfig.from_published(dict(reference.config))
    return load(unet.UNet, config, unet.DIFFUSERS, reference.state_dict())


def our_autoencoder(name: str) -> autoencoder.Autoencoder:
    reference = diffusers_autoencoder(name)
    config = autoencoder.AutoencoderConfig.from_published(dict(reference.config))
    return load(autoencoder.Autoencoder, config, autoencoder.DIFFUSERS, reference.state_dict())


def assert_same_tensors(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(ours[name].reshape(tensor.shape), tensor), name


# diffusers' converter wants at least two levels and builds block types only for the published kinds of shape
@pytest.mark.parametrize("name", ["v1-like", "pocket-like", "v2-like", "inpainting", "attention below"])
def test_diffusers_converts_our_single_file_unet_back(name: str) -> None:
    ours = our_unet(name)
    file = written(ours, compvis.unet_layout(ours.config))
    reference = diffusers_unet(name)
    converted = single_file_utils.convert_ldm_unet_checkpoint(file, config=dict(reference.config))
    assert_same_tensors(dict(reference.state_dict()), converted)


@pytest.mark.parametrize("name", ["v1-like", "pocket-like", "factor 2"])
def test_diffusers_converts_our_single_file_autoencoder_back(name: str) -> None:
    ours = our_autoencoder(name)
    file = written(ours, compvis.autoencoder_layout(ours.config))
    reference = diffusers_autoencoder(name)
    converted = single_file_utils.convert_ldm_vae_checkpoint(file, config=dict(reference.config))
    assert_same_tensors(dict(reference.state_dict()), converted)


@pytest.mark.parametrize("name", ["v1-like", "v2-like", "inpainting", "deep and upcast", "one level"])
def test_unet_config_is_read_back_from_shapes(name: str) -> None:
    ours = our_unet(name)
    shapes = {entry.theirs: entry.shape for entry in written_entries(ours, compvis.unet_layout(ours.config))}
    inferred = compvis.infer_unet(shapes)
    # heads, groups, upcasting and the trained size leave no trace in a file; levels without attention have no depth
    blank = {"heads": inferred.heads, "norm_groups": 32, "upcast_attention": False, "sample_size": 64}
    fields = {name: getattr(ours.config, name) for name in ours.config.__dataclass_fields__}
    assert inferred == UNetConfig(**(fields | blank))


@pytest.mark.parametrize("name", ["v1-like", "factor 2", "no quant conv"])
def test_autoencoder_config_is_read_back_from_shapes(name: str) -> None:
    ours = our_autoencoder(name)
    shapes = {e.theirs: e.shape for e in written_entries(ours, compvis.autoencoder_layout(ours.config))}
    inferred = compvis.infer_autoencoder(shapes)
    blank = {"norm_groups": 32, "scaling_factor": 0.18215, "sample_size": 512}
    fields = {name: getattr(ours.config, name) for name in ours.config.__dataclass_fields__}
    assert inferred == autoencoder.AutoencoderConfig(**(fields | blank))
    assert compvis.autoencoder_kind(shapes) == ("compvis", compvis.AUTOENCODER)


def test_default_shapes_are_inferred_exactly() -> None:
    with empty_modules():
        modules = {
            unet.UNet(UNetConfig()): compvis.unet_layout(UNetConfig()),
            autoencoder.Autoencoder(autoencoder.AutoencoderConfig()): compvis.autoencoder_layout(
                autoencoder.AutoencoderConfig()
            ),
            clip_text.ClipText(clip_text.ClipTextConfig()): compvis.text_layout(),
        }
    shapes = {e.theirs: e.shape for module, layout in modules.items() for e in written_entries(module, layout)}
    assert compvis.infer_unet(shapes) == UNetConfig()
    assert compvis.infer_autoencoder(shapes) == autoencoder.AutoencoderConfig()
    assert compvis.infer_text(shapes) == clip_text.ClipTextConfig()
    assert len(shapes) == 686 + 248 + 196  # the tensors of the published file


def test_moving_average_has_the_names_of_the_original_code() -> None:
    ours = our_unet("pocket-like")
    names = [e.theirs for e in written_entries(ours, compvis.unet_layout(ours.config, ema=True))]
    plain = [e.theirs for e in written_entries(ours, compvis.unet_layout(ours.config))]
    # LitEma registers name.replace(".", "") for each of model.named_parameters()
    assert names == ["model_ema." + name.removeprefix("model.").replace(".", "") for name in plain]
    assert len(set(names)) == len(names)
    assert compvis.has_ema(dict.fromkeys(names, (1,)))
    assert not compvis.has_ema(dict.fromkeys(plain, (1,)))


def test_old_names_of_the_autoencoders_attention_are_read() -> None:
    reference = diffusers_autoencoder("v1-like")
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = {}
    for name, tensor in reference.state_dict().items():
        for new, former in old.items():
            if f"attentions.0.{new}." in name:
                name = name.replace(new, former)
                tensor = tensor[:, :, None, None] if tensor.ndim == 2 else tensor
        state[name] = tensor
    assert "decoder.mid_block.attentions.0.proj_attn.bias" in state
    config = autoencoder.AutoencoderConfig.from_published(dict(reference.config))
    ours = load(autoencoder.Autoencoder, config, autoencoder.DIFFUSERS, state)
    assert_same_tensors(ours.state_dict(), reference.state_dict())


def test_names_are_matched_strictly() -> None:
    reference = diffusers_autoencoder("factor 2")
    config = autoencoder.AutoencoderConfig.from_published(dict(reference.config))
    with empty_modules():
        module = autoencoder.Autoencoder(config)
    state = dict(reference.state_dict())
    without = {name: tensor for name, tensor in state.items() if name != "decoder.conv_in.bias"}
    with pytest.raises(CheckpointError, match=r"lacks decoder\.conv_in\.bias"):
        match(module, autoencoder.DIFFUSERS, InMemory(without))
    with pytest.raises(CheckpointError, match=r"unknown decoder\.surprise"):
        match(module, autoencoder.DIFFUSERS, InMemory(state | {"decoder.surprise": torch.zeros(1)}))
    wrong = state | {"decoder.conv_in.bias": torch.zeros(3)}
    with pytest.raises(CheckpointError, match=r"wrong shape for decoder\.conv_in\.bias is \(3,\), expected \(32,\)"):
        match(module, autoencoder.DIFFUSERS, InMemory(wrong))


def test_text_encoder_names_of_the_single_file() -> None:
    reference = transformers_text("v1-like")
    config = clip_text.ClipTextConfig.from_published(reference.config.to_dict())
    ours = load(clip_text.ClipText, config, clip_text.DIFFUSERS, reference.state_dict())
    file = written(ours, compvis.text_layout())
    bare = {name.removeprefix("text_model."): tensor for name, tensor in reference.state_dict().items()}
    expected = {f"cond_stage_model.transformer.text_model.{name}": tensor for name, tensor in bare.items()}
    assert_same_tensors(file, expected)
