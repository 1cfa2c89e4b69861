"""Every memory mode gives what eager gives with the whole model in float32; weights stay as their file stores them."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import sfumato
from sfumato.engines.names import MEMORY_MODES
from sfumato.errors import InvalidRequest, OutOfMemory
from sfumato.modelfiles.conversion import convert
from sfumato.nn.lazy_weights import StoredConv2d, StoredEmbedding, StoredLinear, stored_layers
from sfumato.pipeline import memory_mode
from sfumato.pipeline.pipeline import Pipeline
from sfumato.weights import mapper
from support.engine_networks import ask
from support.tiny_pipeline import reference_pipeline

ENGINES = ("eager", "winograd", "winograd-plain")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One random model of diffusers, in half precision (its folder, and a single file of ours) and in float32."""
    folder = tmp_path_factory.mktemp("models")
    reference = reference_pipeline(unet="v1-like", vae="v1-like")
    reference.save_pretrained(folder / "float32")
    reference.to(torch.float16).save_pretrained(folder / "float16")
    convert(folder / "float16", folder / "single.safetensors", layout="compvis")
    return {"float32": folder / "float32", "float16": folder / "float16", "single": folder / "single.safetensors"}


@pytest.fixture(autouse=True)
def small_weights_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The models are tiny: leave weights in the file that are a thousandth of what counts as large."""
    monkeypatch.setattr(mapper, "_LARGE", 64)


def load(path: Path, mode: str, engine: str = "eager") -> Pipeline:
    return sfumato.load_pipeline(path, memory=mode, engine=engine, device="cpu", safety="off")


def relative(ours: Tensor, reference: Tensor) -> float:
    assert ours.shape == reference.shape
    return ((ours.double() - reference.double()).norm() / reference.double().norm()).item()


def answers(pipeline: Pipeline) -> dict[str, Tensor]:
    """What each network gives for fixed inputs."""
    model = pipeline.model
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn((1, 4, 24, 16), generator=generator)
    context = torch.randn((2, 7, model.unet.config.context_dim), generator=generator)
    picture = torch.randn((1, 3, 64, 48), generator=generator)
    with torch.inference_mode():
        return {
            "text": torch.cat(pipeline.encode_prompt("a red heart").contexts),
            "unet": ask(model.engine.unet, latents, torch.tensor([981.0]), context),
            "decoder": model.engine.decode(latents),
            "encoder": model.engine.encode(picture).mean,
        }


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("file", ["float32", "float16", "single"])
@pytest.mark.parametrize("mode", MEMORY_MODES)
def test_every_mode_gives_what_eager_gives(files: dict[str, Path], file: str, engine: str, mode: str) -> None:
    reference = answers(load(files[file], "auto"))
    ours = answers(load(files[file], mode, engine))
    for name, tensor in ours.items():
        assert relative(tensor, reference[name]) <= 1e-4, name
    assert torch.equal(ours["text"], reference["text"])


@pytest.mark.parametrize("engine", [*ENGINES, "bf16"])
def test_lean_changes_no_bit_of_the_networks(files: dict[str, Path], engine: str) -> None:
    """Widening is exact, whenever it happens: pictures don't depend on the memory mode, only on the tiling."""
    auto, lean = (
        answers(sfumato.load_pipeline(files["float16"], memory=mode, engine=engine, vae_tiling="none", safety="off"))
        for mode in ("auto", "lean")
    )
    for name in auto:
        assert torch.equal(auto[name], lean[name]), name


def test_weights_stay_in_half_precision_and_their_pages_go(files: dict[str, Path]) -> None:
    lean = load(files["float16"], "lean", "winograd").model
    for module in (lean.unet, lean.autoencoder, lean.text_encoder):
        layers = list(stored_layers(module))
        assert layers and all(layer.weight.dtype is torch.float16 and layer.pages is not None for layer in layers)
        assert all(p.dtype is torch.float32 for p in module.parameters() if p.ndim == 1)
    auto = load(files["float16"], "auto", "winograd").model
    kept = list(stored_layers(auto.unet))
    assert kept and all(layer.weight.dtype is torch.float16 and layer.pages is None for layer in kept)
    eager = load(files["float16"], "auto", "eager").model
    assert not list(stored_layers(eager.unet))
    assert {type(m) for m in eager.unet.modules()} >= {nn.Linear, nn.Conv2d}


def test_released_pages_are_read_again(files: dict[str, Path]) -> None:
    pipeline = load(files["float16"], "lean", "winograd")
    first = answers(pipeline)
    for layer in stored_layers(pipeline.model.unet):
        assert layer.pages is not None
        layer.pages.release()
    again = answers(pipeline)
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_a_picture_has_the_same_pixels_in_every_mode(files: dict[str, Path]) -> None:
    made = {
        mode: load(files["single"], mode, "winograd").generate("a red heart", steps=2, width=64, height=64)
        for mode in MEMORY_MODES
    }
    records = {mode: generation.provenance[0] for mode, generation in made.items()}
    assert {record.pixels_sha256 for record in records.values()} == {records["auto"].pixels_sha256}
    assert [record.vae_tiling for record in records.values()] == ["auto", "exact", "frugal"]


def test_stored_layers_run_at_any_place(files: dict[str, Path]) -> None:
    """A preview, a caller of the modules, a search for NaN: whoever runs a layer gets float32 from it."""
    pipeline = load(files["float16"], "lean", "winograd")
    model = pipeline.model
    assert {type(layer) for layer in stored_layers(model.unet)} == {StoredLinear, StoredConv2d}
    assert StoredEmbedding in {type(layer) for layer in stored_layers(model.text_encoder)}
    with torch.inference_mode():
        assert model.autoencoder.decode(torch.randn(1, 4, 4, 4)).dtype is torch.float32
    assert pipeline.preview(torch.randn(1, 4, 8, 8)).size == (8, 8)


def test_what_cannot_stay_in_the_file_is_said(files: dict[str, Path], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "sfumato"):
        half = sfumato.load_pipeline(files["float16"], memory="low", dtype="bfloat16", device="cpu")
    assert "memory low: weights are read layer by layer in float32 on a CPU only" in caplog.text
    assert half.vae_tiling == "frugal"
    with pytest.raises(InvalidRequest, match="memory 'tiny' is unknown: choose from auto, lean, low"):
        load(files["float16"], "tiny")


def test_a_model_that_does_not_fit_widened_is_refused(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """By engines that need the whole model."""
    monkeypatch.setattr(memory_mode, "_STREAM", frozenset())
    monkeypatch.setattr(memory_mode, "free_memory", lambda device: 100_000)
    with pytest.raises(OutOfMemory, match=r"^the model takes .* as float32, 0\.0 GB are free: use --memory lean$"):
        load(files["float16"], "auto", "eager")
    monkeypatch.setattr(memory_mode, "free_memory", lambda device: 10**9)
    load(files["float16"], "auto", "eager")


@pytest.mark.parametrize("engine", ["eager", "winograd"])
def test_auto_takes_at_most_sixty_percent_of_free_memory_for_weights(
    files: dict[str, Path], engine: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Half precision is widened for eager and stays as it is for the kernels. Left in their file, it makes no bit
    another."""
    whole = load(files["float16"], "auto", engine)
    stored = load(files["float16"], "lean", engine).model
    weights = [
        layer.weight for m in (stored.unet, stored.autoencoder, stored.text_encoder) for layer in stored_layers(m)
    ]
    taken = sum(weight.numel() for weight in weights) * (4 if engine == "eager" else 2)
    for free, left in ((taken / 0.59, False), (taken / 0.61, True)):
        caplog.clear()
        monkeypatch.setattr(memory_mode, "free_memory", lambda device, free=free: int(free))
        auto = load(files["float16"], "auto", engine)
        layers = list(stored_layers(auto.model.unet))
        assert any(layer.pages is not None for layer in layers) is left
        assert ("memory auto: the model takes" in caplog.text) is left
        for name, tensor in answers(auto).items():
            assert torch.equal(tensor, answers(whole)[name]), name
