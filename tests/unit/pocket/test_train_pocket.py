"""The embedded model's recipe run from end to end, with networks and data small enough for seconds."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sfumato.data.samples import Sample
from sfumato.data.shard_writer import as_stored, write_shards
from sfumato.errors import Cancelled, InvalidRequest, ModelNotFound
from sfumato.modelfiles.load_options import LoadOptions
from sfumato.models.autoencoder import AutoencoderConfig
from sfumato.models.clip_text import ClipTextConfig
from sfumato.models.unet_config import UNetConfig
from sfumato.pipeline.model import load_model
from sfumato.pocket.dataset.emoji import Split, split_of, subject_of
from sfumato.pocket.training.pocket_recipes import POCKET, POCKET_GPU, POCKET_RECIPES, SHARES
from sfumato.pocket.training.pocket_stages import Pocket
from sfumato.progress import Cancellation, Progress
from sfumato.report.card.facts_of_run import facts_of_run
from sfumato.train.encoding.encode_dataset import encoder_hash
from sfumato.train.inputs.encoded_latents import SomeLatents
from sfumato.train.inputs.resident import resident_latents
from sfumato.train.logs.compute_log import read_sessions
from sfumato.train.recipes import MODEL, Recipe, Stage
from sfumato.train.runs.autoencoders import load_autoencoder
from sfumato.train.runs.run_weights import weights_of_run
from sfumato.train.tasks.autoencoder_task import AutoencoderTraining
from sfumato.train.tasks.diffusion_task import DiffusionTraining
from sfumato.train.tasks.text_task import TextTraining
from support.made_data import LABELS, Pictures, emoji_sample

TEXT = ClipTextConfig(vocab_size=600, width=16, hidden=32, layers=1, heads=2)
UNET = UNetConfig(
    block_channels=(16, 16),
    attention=(False, True),
    heads=(1, 1),
    depth=(1, 1),
    layers_per_block=1,
    context_dim=16,
    norm_groups=4,
    sample_size=16,
)
AUTOENCODER = AutoencoderConfig(block_channels=(8, 8, 8, 8), layers_per_block=1, norm_groups=1, sample_size=128)


def _tiny(stage: Stage) -> Stage:
    training = replace(stage.training, run=replace(stage.training.run, steps=2, batch=2, validate_every=2))
    if isinstance(training, AutoencoderTraining):
        return replace(stage, training=replace(training, model=AUTOENCODER))
    if isinstance(training, TextTraining):
        return replace(stage, training=replace(training, text_encoder=TEXT, components=4, fitted_on=8))
    assert isinstance(training, DiffusionTraining)
    small = replace(training, text_encoder=TEXT, unet=UNET, components=4, sample_steps=1)
    return replace(stage, training=small)


RECIPE: Recipe = {name: _tiny(stage) for name, stage in POCKET.items()}


def _held_out(split: Split, number: int) -> Sample:
    """A drawing whose label's hash puts it into that part."""
    sample = emoji_sample("key", "flat", number)
    labelled = (replace(sample, fields={**sample.fields, "label": f"thing {i}"}) for i in range(10_000))
    return next(sample for sample in labelled if split_of(subject_of(sample, 0)) == split)


def _pocket(folder: Path, emoji: Path) -> Pocket:
    return Pocket(emoji=emoji, folder=folder, recipe=RECIPE, styles=("flat",), encoded=12, measured=4)


@pytest.fixture(scope="module")
def emoji(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Known drawings in one style, and one of each kind that is held out."""
    known = [emoji_sample(label, "flat", i) for i, label in enumerate(LABELS)]
    source = Pictures([*known, _held_out("held-out-label", 100), _held_out("held-out-picture", 101)])
    folder = tmp_path_factory.mktemp("emoji") / "shards"
    write_shards(source, as_stored(source), folder, name="emoji", samples_per_shard=10)
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, emoji: Path) -> Pocket:
    pocket = _pocket(tmp_path_factory.mktemp("pocket"), emoji)
    assert pocket.train_all()
    return pocket


def test_every_stage_begins_where_the_one_it_names_ended(trained: Pocket) -> None:
    scenes = weights_of_run(trained.folder / "scenes-annealed")
    assert torch.equal(scenes["head.basis"], weights_of_run(trained.folder / "words")["head.basis"])
    for name in RECIPE:
        assert (trained.folder / name / "validation" / "step-00000002.png").is_file() == (name != "words"), name


def test_the_encoder_stays_the_one_that_the_latents_are_from(trained: Pocket) -> None:
    frozen, newest = trained.latent_autoencoder, trained.autoencoder()
    for name, tensor in newest.state_dict().items():
        same = torch.equal(tensor, frozen.state_dict()[name])
        assert same == name.startswith(("encoder.", "quant_conv.")), name


def test_latents_have_unit_variance_once_scaled(trained: Pocket) -> None:
    drawn = trained.moments("scenes")
    samples = [drawn.latents(i) for i in range(len(drawn))]
    mean = torch.stack([sample.mean for sample in samples]).double()
    variance = torch.stack([sample.logvar for sample in samples]).double().exp()
    total = (mean.square() + variance).mean(dim=(0, 2, 3)) * trained.latent_autoencoder.config.scaling_factor**2
    assert ((total > 0.3) & (total < 3.0)).all()


def test_latents_are_measured_anew_where_the_encoder_has_learned_since(trained: Pocket, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("autoencoder-whole", "tokenizer"):
        shutil.copytree(trained.folder / name, folder / name)
    stale = {"encoder": "another", "mean": [9.0] * 4, "deviation": [9.0] * 4}
    (folder / "latents.json").write_text(json.dumps(stale), encoding="utf-8")
    again = replace(trained, folder=folder)
    assert encoder_hash(again.latent_autoencoder) == encoder_hash(trained.latent_autoencoder)
    assert (folder / "latents.json").read_bytes() == (trained.folder / "latents.json").read_bytes()


def test_a_second_call_finds_all_done_and_changes_nothing(trained: Pocket, emoji: Path) -> None:
    before = weights_of_run(trained.folder / "scenes")
    again = _pocket(trained.folder, emoji)
    assert again.train_all()
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights_of_run(again.folder / "scenes").items())


def test_the_exported_model_loads_and_has_the_newest_decoder(trained: Pocket, tmp_path: Path) -> None:
    trained.export(tmp_path / "model")
    model = load_model(tmp_path / "model", LoadOptions(device="cpu"), name="tiny")
    decoder = trained.autoencoder().decoder.conv_out.weight
    torch.testing.assert_close(model.autoencoder.decoder.conv_out.weight, decoder, atol=1e-3, rtol=1e-3)
    unet = weights_of_run(trained.folder / "scenes-annealed")["unet.conv_in.weight"]
    torch.testing.assert_close(model.unet.conv_in.weight, unet, atol=1e-3, rtol=1e-3)
    assert model.guidance_scale == 3.0  # as the recipe has it


def test_encoding_tells_how_far_it_is_and_stops_when_asked(trained: Pocket, tmp_path: Path, emoji: Path) -> None:
    """Stopped after its first pictures, a stage hasn't begun; called again, its latents are as if it never was."""
    trained.export(tmp_path / "model")
    stop = Cancellation()

    def asked(event: Progress) -> None:
        if event.stage == "samples" and event.step:
            stop.cancel()

    given = replace(_pocket(tmp_path / "run", emoji), start=tmp_path / "model")
    with pytest.raises(Cancelled):
        replace(given, cancellation=stop, on_progress=asked).train("scenes")
    assert not (given.folder / "scenes").exists()
    seen: list[Progress] = []
    again = replace(given, on_progress=seen.append)
    assert again.train("scenes").finished
    told = [(event.stage, event.step, event.steps, event.images) for event in seen]
    assert told == [
        *[("samples", 0, 12, 1), ("samples", 12, 12, 1), ("samples", 0, 2, 1), ("samples", 2, 2, 1)],
        *[("train", step, 2, 2) for step in range(3)],
    ]
    means = [again.moments("scenes").latents(i).mean for i in range(12)]
    fresh = replace(_pocket(tmp_path / "other", emoji), start=tmp_path / "model").moments("scenes")
    assert all(torch.equal(mean, fresh.latents(i).mean) for i, mean in enumerate(means))


def test_what_is_stored_lies_on_the_device_as_if_read_one_by_one(trained: Pocket) -> None:
    stored = trained.moments("scenes")
    whole = resident_latents(stored, trained.tokenizer, torch.device("cpu"))
    single = resident_latents(SomeLatents(stored, range(len(stored))), trained.tokenizer, torch.device("cpu"))
    assert len(whole.mean) == len(stored)
    for name in ("mean", "logvar", "tokens", "first"):
        assert torch.equal(getattr(whole, name), getattr(single, name)), name


def test_hours_are_noted(trained: Pocket) -> None:
    (session,) = read_sessions(trained.folder / "scenes")
    assert (session.first_step, session.last_step) == (0, 2)
    assert session.seconds > 0.0


def test_later_stages_start_from_a_model_alone(trained: Pocket, tmp_path: Path, emoji: Path) -> None:
    model = tmp_path / "model"
    trained.export(model)
    pocket = replace(_pocket(tmp_path / "run", emoji), start=model)
    scenes = pocket.train("scenes").state
    assert scenes.step == 2
    session = read_sessions(pocket.folder / "scenes")[0]
    assert (session.start or "").startswith("model (UNet's sha256 ")
    stage = facts_of_run(pocket.folder / "scenes").training[0]
    assert stage.start == session.start
    # nothing is folded into the latents a second time, and the encoder that made them stays
    for name, tensor in load_autoencoder(str(model)).state_dict().items():
        assert torch.equal(tensor, pocket.latent_autoencoder.state_dict()[name]), name
    assert encoder_hash(pocket.latent_autoencoder) == encoder_hash(load_autoencoder(str(model)))
    shutil.rmtree(model)  # it has its own by now
    again = _pocket(pocket.folder, emoji)
    assert again.train("scenes-annealed").state.step == 2
    assert read_sessions(pocket.folder / "scenes-annealed")[0].start == "scenes"
    again.export(tmp_path / "further")
    with pytest.raises(InvalidRequest, match="other latents"):
        again.train("autoencoder-whole")


def test_the_first_weights_are_the_models(trained: Pocket, tmp_path: Path, emoji: Path) -> None:
    model = tmp_path / "model"
    trained.export(model)
    pocket = replace(_pocket(tmp_path / "run", emoji), start=model)
    task = pocket._task("annealed", pocket._training("annealed"))
    first = pocket._first("annealed", task)
    assert first is not None
    loaded = load_model(model, LoadOptions(device="cpu"), name="tiny")
    for ours, theirs in ((first.unet, loaded.unet), (first.text_encoder, loaded.text_encoder)):
        assert all(torch.equal(tensor, theirs.state_dict()[name]) for name, tensor in ours.state_dict().items())


def test_a_folder_with_latents_of_its_own_takes_no_model(trained: Pocket, tmp_path: Path) -> None:
    trained.export(tmp_path / "model")
    with pytest.raises(InvalidRequest, match="autoencoder of its own"):
        replace(trained, start=tmp_path / "model").train("scenes")


def test_nothing_is_exported_before_there_is_a_painter(tmp_path: Path, emoji: Path) -> None:
    pocket = _pocket(tmp_path / "run", emoji)
    assert not pocket.has_diffusion
    with pytest.raises(ModelNotFound, match="diffusion"):
        pocket.export(tmp_path / "model")


def test_without_time_nothing_is_done(tmp_path: Path, emoji: Path) -> None:
    assert not _pocket(tmp_path / "run", emoji).train_all(minutes=0.0)
    assert not (tmp_path / "run").exists()


def test_steps_fitted_to_the_time_are_kept(tmp_path: Path, emoji: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sfumato.pocket.training.pocket_stages._step_seconds", lambda *_: 2.0)
    pocket = _pocket(tmp_path, emoji)
    assert pocket.fit("autoencoder-squares", minutes=0.1) == 3
    assert pocket.fit("autoencoder-squares", minutes=5.0) == 3
    assert pocket.train("autoencoder-squares").state.step == 3


def test_the_whole_recipe_fits_its_time_with_scenes_drawn_beforehand(
    tmp_path: Path, emoji: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sfumato.pocket.training.pocket_stages._step_seconds", lambda *_: 60.0)
    recipe = {name: _tiny(stage) for name, stage in POCKET_GPU.items()}
    pocket = Pocket(
        emoji=emoji,
        folder=tmp_path,
        recipe=recipe,
        styles=("flat",),
        processes=2,
        encoded=12,
        rendered=12,
        measured=4,
    )
    assert all(set(shares) == set(POCKET_RECIPES[name]) for name, shares in SHARES.items())
    shares = dict.fromkeys(recipe, 0.01) | {"drawings": 0.03}
    assert pocket.train_all(minutes=100.0, shares=shares)
    assert weights_of_run(tmp_path / "scenes")
    assert [read_sessions(tmp_path / name)[-1].last_step for name in ("words", "drawings")] == [1, 3]


@pytest.mark.parametrize("name", ["scenes", "autoencoder"])
def test_a_stage_without_latents_names_the_one_before_and_draws_nothing(tmp_path: Path, emoji: Path, name: str) -> None:
    with pytest.raises(ModelNotFound, match="autoencoder-whole: train that stage first"):
        replace(_pocket(tmp_path / "run", emoji), processes=2).train(name)
    assert not (tmp_path / "run").exists()


def test_an_unknown_stage_is_named(tmp_path: Path, emoji: Path) -> None:
    with pytest.raises(InvalidRequest, match="paint"):
        _pocket(tmp_path, emoji).train("paint")


def test_a_model_goes_on_learning_with_its_autoencoder(trained: Pocket, tmp_path: Path, emoji: Path) -> None:
    """Latents are made by the autoencoder as it has become, of unit variance again; words stay the model's."""
    trained.export(tmp_path / "model")
    recipe = {name: _tiny(stage) for name, stage in POCKET_RECIPES["pocket-gpu-again"].items()}
    folder = tmp_path / "run"
    pocket = replace(_pocket(folder, emoji), recipe=recipe, processes=2, rendered=12)
    with pytest.raises(InvalidRequest, match="--start"):
        pocket.train("scenes-again")
    again = replace(pocket, start=tmp_path / "model")
    assert again.train_all()
    assert replace(again).train_all()
    starts = {name: read_sessions(folder / name)[0].start for name in recipe}
    assert starts["autoencoder"] == "autoencoder-whole"
    assert all((starts[name] or "").startswith("model (") for name in recipe if recipe[name].start == MODEL)
    given = load_autoencoder(str(tmp_path / "model"))
    assert encoder_hash(again.latent_autoencoder) != encoder_hash(given)
    assert again.moments("scenes").moments.autoencoder == encoder_hash(again.latent_autoencoder)
    changes = weights_of_run(folder / "scenes-again")["unet.conv_in.weight"] - (
        load_model(tmp_path / "model", LoadOptions(device="cpu"), name="tiny").unet.conv_in.weight
    )
    assert 0.0 < changes.abs().max() < 0.01
    again.export(tmp_path / "further")
