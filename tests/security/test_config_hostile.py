"""Configs that were made to break a reader: one line that names the file, at once and in little memory."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import sfumato
from sfumato import json_files
from sfumato.diffusion.noise_schedule import NoiseSchedule
from sfumato.errors import InvalidConfig, ModelNotFound, SfumatoError
from sfumato.modelfiles.load_options import LoadOptions
from sfumato.models.clip_vision import ClipVisionConfig
from sfumato.models.unet_config import UNetConfig
from sfumato.pipeline.model import load_model
from sfumato.pipeline.safety_checker import load_safety_checker

POCKET = Path(sfumato.__file__).parent / "assets" / "pocket"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(POCKET, tmp_path / "model")
    return tmp_path / "model"


def _load(path: Path) -> str:
    """What loading says, and that it says it before any network was built at length."""
    with pytest.raises(SfumatoError) as caught:
        load_model(path, LoadOptions(device="cpu"), name="hostile")
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 1000
    return message


def _change(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


UNET, VAE, TEXT = "unet/config.json", "vae/config.json", "text_encoder/config.json"
SCHEDULER, TOKENIZER = "scheduler/scheduler_config.json", "tokenizer/tokenizer_config.json"


@pytest.mark.parametrize(
    ("file", "fields", "named"),
    [
        (TEXT, {"num_hidden_layers": 200_000}, "layers=200000"),
        (TEXT, {"vocab_size": 2**40}, "vocab_size"),
        (TEXT, {"max_position_embeddings": 10**9}, "positions"),
        (TEXT, {"layer_norm_eps": "small"}, "eps"),
        (TEXT, {"layer_norm_eps": 0}, "eps"),
        (TEXT, {"hidden_act": ["gelu"]}, "activation"),
        (UNET, {"block_out_channels": 64}, "block_out_channels"),
        (UNET, {"block_out_channels": [32] * 500}, "levels=500"),
        (UNET, {"down_block_types": 5}, "down_block_types"),
        (UNET, {"down_block_types": [{}, [], None]}, "down_block_types"),
        (UNET, {"attention_head_dim": None, "num_attention_heads": None}, "attention_head_dim"),
        (UNET, {"attention_head_dim": {"a": 1}}, "attention_head_dim"),
        (UNET, {"transformer_layers_per_block": 10**6}, "depth"),
        (UNET, {"transformer_layers_per_block": 64, "layers_per_block": 16}, "transformer blocks"),
        (UNET, {"layers_per_block": 10**6}, "layers_per_block"),
        (UNET, {"use_linear_projection": "no"}, "linear_projection"),
        (UNET, {"norm_num_groups": True}, "norm_groups"),
        (VAE, {"scaling_factor": "0.18215"}, "scaling_factor"),
        (VAE, {"scaling_factor": 0}, "scaling_factor"),
        (VAE, {"scaling_factor": 10**400}, "scaling_factor"),
        (VAE, {"block_out_channels": {"a": 1}}, "block_out_channels"),
        (VAE, {"block_out_channels": [8, "16", 32, 64]}, "block_channels"),
        (VAE, {"use_quant_conv": "yes"}, "use_post_quant_conv"),
        (SCHEDULER, {"num_train_timesteps": 10**9}, "num_train_timesteps"),
        (SCHEDULER, {"num_train_timesteps": "1000"}, "num_train_timesteps"),
        (SCHEDULER, {"beta_start": 0.9, "beta_end": 0.9}, "0.9"),
        (SCHEDULER, {"beta_end": [1]}, "beta_end"),
        (SCHEDULER, {"beta_start": 10**400}, "scheduler"),
        (SCHEDULER, {"beta_schedule": ["linear"]}, "beta_schedule"),
        (SCHEDULER, {"trained_betas": 7}, "trained_betas"),
        (SCHEDULER, {"trained_betas": "0123"}, "trained_betas"),
        (SCHEDULER, {"prediction_type": ["epsilon"]}, "prediction_type"),
        (SCHEDULER, {"prediction_type": 5}, "prediction_type"),
        (TOKENIZER, {"added_tokens_decoder": [1, 2]}, "added_tokens_decoder"),
        (TOKENIZER, {"added_tokens_decoder": {"first": {"content": "a"}}}, "added_tokens_decoder"),
        (TOKENIZER, {"added_tokens_decoder": {"1": 5}}, "special token"),
        (TOKENIZER, {"added_tokens_decoder": {}, "bos_token": ["a"]}, "special token"),
        (TOKENIZER, {"added_tokens_decoder": {}, "eos_token": "\ud800"}, "special token"),
        (TOKENIZER, {"model_max_length": 78}, "model_max_length"),
    ],
)
def test_a_malformed_field_is_named_with_its_file(
    folder: Path, file: str, fields: Mapping[str, Any], named: str
) -> None:
    _change(folder / file, **fields)
    message = _load(folder)
    assert named in message
    assert str(folder) in message


@pytest.mark.parametrize("file", [UNET, VAE, TEXT, SCHEDULER, TOKENIZER])
@pytest.mark.parametrize(
    "content",
    [
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"5",
        b"[]",
        b"\xff\xfe",
        b'{"a": NaN}',
        b'{"a": -Infinity}',
        b'{"a": 1e999}',
        b"",
    ],
    ids=["deep list", "deep object", "number", "list", "not text", "NaN", "infinity", "huge", "empty"],
)
def test_a_file_that_is_no_config_is_named(folder: Path, file: str, content: bytes) -> None:
    (folder / file).write_bytes(content)
    assert str(folder / file) in _load(folder)


def test_a_large_file_is_not_read_and_many_values_are_not_built(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    with path.open("wb") as file:
        file.truncate(2**40)
    tracemalloc.start()
    try:
        with pytest.raises(InvalidConfig, match="too large"):
            json_files.read_object(path)
        path.write_bytes(b'{"a":[' + b"[]," * (2 * 2**20) + b"[]]}")
        with pytest.raises(InvalidConfig, match="too many values"):
            json_files.read_object(path)
        path.write_bytes(b'{"a":' + b"[" * 200 + b"]" * 200 + b"}")
        with pytest.raises(InvalidConfig, match="nested too deeply"):
            json_files.read_object(path)
        assert tracemalloc.get_traced_memory()[1] < 64 * 2**20
    finally:
        tracemalloc.stop()
    with pytest.raises(InvalidConfig, match="not a file"):
        json_files.read_object(tmp_path)
    with pytest.raises(ModelNotFound, match=r"none\.json is missing"):
        json_files.read_object(tmp_path / "none.json")


def test_ids_that_the_text_encoder_does_not_know_are_refused(folder: Path) -> None:
    _change(folder / TOKENIZER, added_tokens_decoder={"4000": {"content": "<new>"}})
    message = _load(folder)
    assert "ids up to 4000" in message
    assert "4000 tokens" in message


def test_tokenizer_json_that_is_malformed_is_named(folder: Path) -> None:
    for file in (folder / "tokenizer").iterdir():
        if file.name in ("vocab.json", "merges.txt"):
            file.unlink()
    path = folder / "tokenizer" / "tokenizer.json"
    for content in ({"model": {"vocab": {"a": 1}, "merges": 5}}, {"model": {"vocab": {"a": True}, "merges": []}}):
        path.write_text(json.dumps(content))
        assert str(folder / "tokenizer") in _load(folder)
    path.write_text(json.dumps({"model": {"vocab": {"a": 1}, "merges": []}, "added_tokens": {"id": 3}}))
    assert "added_tokens" in _load(folder)


@pytest.mark.parametrize(
    "values", [{"vision_config": 5}, {"vision_config": []}, {"hidden_size": 8}, {"vision_config": {"hidden_size": 8}}]
)
def test_the_safety_checkers_config_is_checked(tmp_path: Path, values: Any) -> None:
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(InvalidConfig, match=r"config\.json: image encoder"):
        load_safety_checker(tmp_path, device=torch.device("cpu"), dtype=torch.float32)


@pytest.mark.parametrize("fields", [{"layers": 10**6}, {"image_size": 10**6, "patch_size": 1}, {"eps": float("nan")}])
def test_an_image_encoder_has_bounds(fields: Mapping[str, Any]) -> None:
    with pytest.raises(InvalidConfig, match="image encoder"):
        ClipVisionConfig(**fields)


def test_noise_that_cannot_be_computed_is_a_configuration_error() -> None:
    for fields in (
        {"beta_start": 0.9, "beta_end": 0.9},
        {"beta_start": -1.0},
        {"beta_start": 1e-300, "beta_end": 1e-300},
        {"beta_end": float("inf")},
        {"trained_betas": (0.5,), "num_train_timesteps": 1, "rescale_betas_zero_snr": True},
    ):
        with pytest.raises(InvalidConfig):
            NoiseSchedule(**fields)


def test_published_shapes_are_within_the_bounds() -> None:
    """SDXL's UNet is the deepest that is published."""
    levels = ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"]
    config = UNetConfig.from_published(
        {
            "block_out_channels": [320, 640, 1280],
            "down_block_types": levels,
            "attention_head_dim": [5, 10, 20],
            "transformer_layers_per_block": [1, 2, 10],
            "cross_attention_dim": 2048,
        }
    )
    assert config.depth == (1, 2, 10)
