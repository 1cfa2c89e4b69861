"""Warm starts: the same numbers from the cache, for the files it was made from and no others."""

from __future__ import annotations

import json
import os
import shutil
from math import prod
from pathlib import Path

import pytest
import torch

from sfumato.bench.random_model import random_model
from sfumato.errors import InvalidRequest
from sfumato.modelfiles.conversion import convert
from sfumato.modelfiles.load_options import LoadOptions
from sfumato.modelfiles.open_model import open_model
from sfumato.modelfiles.weight_cache import entries, warm, warm_folder
from sfumato.models.autoencoder import AutoencoderConfig
from sfumato.models.clip_text import ClipTextConfig
from sfumato.models.unet_config import UNetConfig
from sfumato.nn.lazy_weights import stored_layers
from sfumato.pipeline import memory_mode
from sfumato.pipeline.model import Model, load_model
from sfumato.runtime import dtype_name
from sfumato.user_cache import cleared, contents
from sfumato.weights import mapper
from sfumato.weights.checkpoint import Checkpoint
from support.tiny_pipeline import POCKET

PARTS = ("text_encoder", "unet", "vae")


@pytest.fixture
def half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A single file in float16, which float32 has converted; cache and library are empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("SFUMATO_HOME", str(tmp_path / "home"))
    return written(tmp_path / "half.safetensors", "float16")


def written(file: Path, dtype: str) -> Path:
    folder = random_model(
        file.with_suffix(".folder"),
        unet_config=UNetConfig(
            block_channels=(32, 64),
            attention=(True, False),
            heads=(4, 4),
            depth=(1, 1),
            layers_per_block=1,
            context_dim=24,
            norm_groups=8,
            sample_size=8,
        ),
        vae_config=AutoencoderConfig(block_channels=(16, 32), layers_per_block=1, norm_groups=4, sample_size=16),
        text_config=ClipTextConfig(vocab_size=4000, positions=77, width=24, hidden=48, layers=1, heads=2),
        tokenizer=POCKET / "tokenizer",
    )
    convert(folder, file, layout="compvis", dtype=dtype)
    return file


def load(path: Path, dtype: torch.dtype = torch.float32) -> Model:
    return load_model(path, LoadOptions(device="cpu", dtype=dtype_name(dtype), engine="eager"), name="half")


def answer(model: Model) -> torch.Tensor:
    draw = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        context = model.text_encoder(torch.arange(77)[None])
        context = context if isinstance(context, torch.Tensor) else context[0]
        return model.unet(torch.randn((1, 4, 8, 8), generator=draw), torch.tensor([500.0]), context)


def read_from(monkeypatch: pytest.MonkeyPatch, path: Path) -> set[Path]:
    """The files whose tensors loading that model reads."""
    seen: set[Path] = set()
    read = Checkpoint.read

    def noting(self: Checkpoint, *arguments: object, **options: object) -> torch.Tensor:
        seen.add(self.path)
        return read(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "read", noting)
        load(path)
    return seen


def test_a_warm_model_is_the_same_model_read_from_the_cache(half: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cold = load(half)
    assert read_from(monkeypatch, half) == {half}
    made = warm(half, dtype=torch.float32)
    assert [part.part for part in made] == list(PARTS)
    assert read_from(monkeypatch, half) == {part.path for part in made}
    warmed = load(half)
    assert torch.equal(answer(warmed), answer(cold))
    assert warmed.sha256 == cold.sha256
    assert {parameter.dtype for parameter in warmed.unet.parameters()} == {torch.float32}
    assert [part.path for part in warm(half, dtype=torch.float32)] == [part.path for part in made]  # nothing new
    assert warm(half, dtype=torch.float16) == []  # as it lies in its file
    assert {parameter.dtype for parameter in load(half, torch.float16).unet.parameters()} == {torch.float16}


def test_another_file_under_the_same_name_is_read_itself(half: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    warm(half, dtype=torch.float32)
    data = bytearray(half.read_bytes())
    data[-1] ^= 1
    half.write_bytes(data)
    os.utime(half, ns=(1, 1))
    assert read_from(monkeypatch, half) == {half}


@pytest.mark.parametrize("damage", ["another entry", "cut off", "nonsense"])
def test_an_entry_that_is_not_what_its_name_says_is_left(
    half: Path, monkeypatch: pytest.MonkeyPatch, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    cold = answer(load(half))
    unet = next(part.path for part in warm(half, dtype=torch.float32) if part.part == "unet")
    if damage == "another entry":
        other = half.with_name("other.safetensors")
        shutil.copytree(half.with_suffix(".folder"), other.with_suffix(".folder"))
        convert(other.with_suffix(".folder"), other, layout="compvis", dtype="bfloat16")
        shutil.copy(next(part.path for part in warm(other, dtype=torch.float32) if part.part == "unet"), unet)
    else:
        unet.write_bytes(unet.read_bytes()[:-4] if damage == "cut off" else b"nonsense")
    with caplog.at_level("WARNING", logger="sfumato"):
        assert torch.equal(answer(load(half)), cold)
    assert [str(unet) in line for line in caplog.messages] == [True]
    assert half in read_from(monkeypatch, half)


def test_what_the_cache_holds_is_listed_and_cleared(half: Path) -> None:
    warm(half, dtype=torch.float32)
    assert [part.part for part in entries()] == list(PARTS)
    assert {part.source for part in entries()} == {str(half)}
    mine = warm_folder().parent / "mine.txt"
    mine.write_text("not the program's")
    kept = contents()["warm"]
    assert kept == sum(part.bytes for part in entries()) > 0
    with pytest.raises(InvalidRequest, match="did you mean 'warm'"):
        cleared("warn")
    assert cleared("warm") == kept
    assert cleared("all") == 0
    assert mine.exists() and half.exists() and entries() == []


def test_a_file_of_another_hash_has_no_entry(half: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    warm(half, dtype=torch.float32)
    hashes = Path(os.environ["SFUMATO_HOME"]) / "hashes.json"
    known = json.loads(hashes.read_text())
    known[str(half.resolve())]["sha256"] = "0" * 64
    hashes.write_text(json.dumps(known))
    assert read_from(monkeypatch, half) == {half}


@pytest.mark.parametrize("engine", ["winograd", "eager"])
def test_where_float32_is_too_much_the_smaller_file_is_read(
    half: Path, engine: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The kernels hold what fits as it is stored; eager would widen it, and leaves it in the file it came from."""
    monkeypatch.setattr(mapper, "_LARGE", 64)
    warm(half, dtype=torch.float32)
    with open_model(half) as files:
        numbers = sum(prod(entry.shape) for part in files.parts.values() for entry in part.entries)
    for free, dtype in ((4 * numbers / 0.59, torch.float32), (4 * numbers / 0.7, torch.float16)):
        monkeypatch.setattr(memory_mode, "free_memory", lambda device, free=free: int(free))
        model = load_model(half, LoadOptions(device="cpu", engine=engine), name="half")
        stored = list(stored_layers(model.unet))
        assert {layer.weight.dtype for layer in stored} <= {dtype}
        left_in_file = engine == "eager" and dtype is torch.float16
        assert any(layer.pages is not None for layer in stored) is left_in_file
        assert ("memory auto: the model takes" in caplog.text) is left_in_file
        assert bool(stored) is (engine == "winograd" or left_in_file)
