"""A run that can't fit says so before it starts; the estimate follows the sizes and the tilings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import sfumato
from sfumato import runtime
from sfumato.errors import OutOfMemory
from sfumato.models.autoencoder import AutoencoderConfig
from sfumato.models.unet_config import UNetConfig
from sfumato.pipeline import memory_need
from sfumato.pipeline.memory_need import Shape, bytes_needed
from sfumato.pipeline.pipeline import Pipeline

V1 = (UNetConfig(), AutoencoderConfig())
SHAPE = Shape(width=2048, height=2048, batch=1, tiling="none", compiled=True, encodes=False, itemsize=4)


@pytest.fixture(scope="module")
def pocket() -> Pipeline:
    return sfumato.load_pipeline("pocket")


def test_what_cannot_fit_is_refused_with_the_numbers(pocket: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []
    monkeypatch.setattr(memory_need, "free_memory", lambda device: 30_000_000)
    with pytest.raises(
        OutOfMemory, match=r"^1024×1024 pixels need about \d+\.\d GB, 0\.0 GB are free: use .+$"
    ) as told:
        pocket.generate("a red heart", width=1024, height=1024, steps=1, on_progress=seen.append)
    assert seen == []  # before anything was done
    assert "\n" not in str(told.value)
    pocket.generate("a red heart", width=64, height=64, steps=1)  # what fits is made


def test_calls_beside_each_other_count(pocket: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for one call and a half: the second is refused while the first runs, and made when it is done."""
    model = pocket.model
    needed = bytes_needed(
        model.unet.config,
        model.autoencoder.config,
        memory_need.shape_of(model, pocket.resolve(sfumato.Request(prompt="a")), 1),
    )
    free = [needed * 3 // 2]
    monkeypatch.setattr(memory_need, "free_memory", lambda device: free[0])

    def beside(event: sfumato.Progress) -> None:
        if event.stage == "denoise":
            free[0] = needed  # what the first call holds by now is not counted twice
            with pytest.raises(OutOfMemory, match=r"are free: use"):
                pocket.generate("a", steps=1)
            pocket.generate("a", steps=1, width=32, height=32)

    pocket.generate("a", steps=1, on_progress=beside)
    pocket.generate("a", steps=1)


def test_advice_is_what_would_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    model = SimpleNamespace(
        device=torch.device("cpu"),
        dtype=torch.float32,
        unet=SimpleNamespace(config=V1[0]),
        autoencoder=SimpleNamespace(config=V1[1]),
        engine=SimpleNamespace(name="winograd", tiling="none", kernels=object()),
    )
    request = sfumato.Request(prompt="x", width=2048, height=1024)
    for tiling in ("exact", "frugal", "blend"):
        needed = bytes_needed(*V1, replace(SHAPE, height=1024, tiling=tiling))
        monkeypatch.setattr(memory_need, "free_memory", lambda device, needed=needed: needed)
        with pytest.raises(OutOfMemory, match=rf"2048×1024 pixels need about .* use --vae-tiling {tiling}$"):
            memory_need.check_memory(model, request, 1)
    monkeypatch.setattr(memory_need, "free_memory", lambda device: 300_000_000)
    with pytest.raises(OutOfMemory, match=r"use (\d+)×(\d+) pixels at most$") as told:
        memory_need.check_memory(model, request, 1)
    width, height = (int(side) for side in str(told.value).split("use ")[1].split(" ")[0].split("×"))
    memory_need.check_memory(model, request.replace(width=width, height=height), 1)
    monkeypatch.setattr(memory_need, "free_memory", lambda device: None)  # where nobody knows, nothing is refused
    memory_need.check_memory(model, request, 1)


def test_the_estimate_falls_from_tiling_to_tiling_and_grows_with_the_batch() -> None:
    by_tiling = [bytes_needed(*V1, replace(SHAPE, tiling=tiling)) for tiling in ("none", "exact", "frugal", "blend")]
    assert by_tiling == sorted(by_tiling, reverse=True)
    assert by_tiling[0] > 4 * 4 * 2048 * 2048 * 512 // 4  # four maps of 128 channels, in float32
    assert bytes_needed(*V1, replace(SHAPE, tiling="blend", batch=8)) > bytes_needed(
        *V1, replace(SHAPE, tiling="blend")
    )
    assert bytes_needed(*V1, replace(SHAPE, compiled=False)) > by_tiling[0]
    assert bytes_needed(*V1, replace(SHAPE, itemsize=2)) < by_tiling[0]


def test_a_containers_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a control group leaves, its cached files given back; none of it where there is no limit."""
    files = tuple(tmp_path / name for name in ("max", "current", "stat"))
    monkeypatch.setattr(runtime, "_GROUPS", (tuple(map(str, files)),))
    for path, text in zip(files, ("1000000\n", "900000\n", "anon 5\ninactive_file 50000\n"), strict=True):
        path.write_text(text)
    assert runtime.free_memory(torch.device("cpu")) == 150_000
    files[0].write_text("max\n")
    free = runtime.free_memory(torch.device("cpu"))
    assert free is None or free > 1_000_000
