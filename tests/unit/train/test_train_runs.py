"""`sfumato.train` from a program: a run is begun, stopped, gone on with and exported without the command line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

import sfumato.train
from sfumato.models.autoencoder import AutoencoderConfig
from sfumato.train import KINDS, export_run, read_run, train_autoencoder
from sfumato.train.run_config import RunConfig
from sfumato.train.runs.autoencoders import load_autoencoder
from sfumato.train.tasks.autoencoder_task import AutoencoderTraining
from support.train_pictures import Shapes

CONFIG = AutoencoderTraining(
    crop=16,
    model=AutoencoderConfig(block_channels=(8, 16), layers_per_block=1, norm_groups=1, sample_size=16),
    run=RunConfig(steps=2, batch=2, validate_every=0),
)


def test_every_public_name_is_there() -> None:
    assert {f"train_{kind}" for kind in KINDS} <= set(sfumato.train.__all__)
    assert all(callable(getattr(sfumato.train, name)) for name in sfumato.train.__all__ if name != "KINDS")


def test_a_run_is_stopped_gone_on_with_and_exported(tmp_path: Path) -> None:
    pictures, run = tmp_path / "pictures", tmp_path / "run"
    pictures.mkdir()
    for index in range(4):
        sample = Shapes(4, 24).sample(index)
        sample.picture.save(pictures / f"{index}.png")
        (pictures / f"{index}.txt").write_text(sample.captions[0])
    stopped = train_autoencoder(CONFIG, pictures, run, minutes=0.0)
    assert (stopped.step, stopped.finished, stopped.model) == (0, False, None)
    finished = train_autoencoder(CONFIG, pictures, run)
    assert (finished.step, finished.finished, finished.model) == (2, True, run / "model")
    trained = read_run(run)
    assert (trained.kind, trained.step, trained.training) == ("autoencoder", 2, CONFIG)
    export_run(trained, tmp_path / "exported", dtype=torch.float32)
    ours, exported = (load_autoencoder(path).state_dict() for path in (run, tmp_path / "exported"))
    assert all(torch.equal(tensor, exported[name]) for name, tensor in ours.items())
    later = train_autoencoder(
        replace(CONFIG, run=replace(CONFIG.run, seed=1)), pictures, tmp_path / "second", start=str(run)
    )
    assert later.finished
