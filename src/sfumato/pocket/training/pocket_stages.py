"""The embedded model's training, from the emoji shards to a model folder: every stage of the recipe `pocket`, in order.

    FOLDER/STAGE/           a run each: config.toml, metrics.jsonl, checkpoints/, validation/
    FOLDER/latents.json     mean and deviation of the latents, folded into the autoencoder before anything is encoded
    FOLDER/tokenizer/       learned from the captions
    FOLDER/moments/NAME/    encoded pictures
    FOLDER/start/           the model that the stages went on from, where there was one (`train/starting_model.py`)
    FOLDER/model/           what is published

Whatever is there already is used; so the same call goes on where an earlier one was stopped.
"""

from __future__ import annotations

import copy
import itertools
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from PIL import Image
from torch import Tensor, nn

from sfumato.data.rendered import render
from sfumato.data.samples import Dataset, Subset
from sfumato.data.transforms import Preparation, on_background
from sfumato.errors import InvalidRequest, ModelNotFound
from sfumato.files import atomic_folder, write_text
from sfumato.json_files import read_object
from sfumato.models.autoencoder import Autoencoder
from sfumato.models.clip_text import ClipTextConfig
from sfumato.pocket.dataset.emoji import EmojiSet, captions_of, open_emoji
from sfumato.pocket.dataset.scenes import SceneMix, SceneSet
from sfumato.pocket.training.pocket_recipes import AUTOENCODER_MIX, EPOCH, MIX, MIX_AGAIN, POCKET, PROMPTS, STYLES
from sfumato.progress import Cancellation, OnProgress, Progress, ignore
from sfumato.prompt.bpe_training import train_tokenizer
from sfumato.prompt.tokenizer import Tokenizer
from sfumato.toml_files import read_config, to_toml
from sfumato.train.checkpoints import is_begun
from sfumato.train.encoding.encode_dataset import encode_moments, encoder_hash
from sfumato.train.encoding.encode_in_processes import encode_in_processes
from sfumato.train.inputs.encoded_latents import LatentDataset, StoredLatents
from sfumato.train.inputs.image_tensors import scaled, to_bytes
from sfumato.train.kinds import read_run
from sfumato.train.recipes import MODEL, Recipe, Training, lineage
from sfumato.train.run_folder import CONFIG
from sfumato.train.runs.autoencoders import autoencoder_of_run
from sfumato.train.runs.run_weights import first_module, weights_of_run
from sfumato.train.runs.train_diffusion import publish_diffusion
from sfumato.train.starting_model import KeptModel, keep_model, kept_model
from sfumato.train.task import Task
from sfumato.train.tasks.autoencoder_task import AutoencoderTask, AutoencoderTraining
from sfumato.train.tasks.diffusion_task import DiffusionTask, DiffusionTraining, Validation, trained_networks
from sfumato.train.tasks.text_task import TextTask, TextTraining
from sfumato.train.tasks.whitening import ChannelStatistics, channel_statistics, whiten
from sfumato.train.trainer import Outcome, train

SIDE = 128  # pixels
LATENTS = "autoencoder-whole"  # the stage after which the encoder stays as it is
DECODER = "autoencoder"  # the stage that trains the decoder alone

_WARM_STEPS, _TIMED_STEPS = 5, 30
_ENCODED_TOGETHER, _DRAWN_TOGETHER = 128, 4096  # pictures a batch and a part, where several processes encode
_WORD_SCENES = 8192  # scenes whose captions the tokenizer learns from, beside the drawings'


@dataclass(frozen=True, kw_only=True)
class Pocket:
    """The stages of `recipe` below `folder`, on scenes and drawings of the emoji shards in the folder `emoji`.

    With the model folder `start`, the stages that would make its latents and words aren't needed: those whose stage
    before isn't there start from it. The diffusion model sees `styles` only. Where there are several `processes`, they
    draw scenes beforehand and encode them. Whatever takes long tells `on_progress`, and stops when `cancellation` is
    requested.
    """

    emoji: Path
    folder: Path
    start: Path | None = None
    recipe: Recipe = field(default_factory=lambda: POCKET)
    styles: tuple[str, ...] = STYLES
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    processes: int = 1
    encoded: int = 65_536  # scenes
    rendered: int = 65_536  # pictures drawn beforehand at most; 3 GB
    measured: int = 1024  # scenes that decide mean and deviation of the latents
    cancellation: Cancellation = field(default_factory=Cancellation)
    on_progress: OnProgress = ignore

    def train(self, name: str, *, minutes: float | None = None) -> Outcome:
        """One stage, going on where it was stopped. `InvalidRequest` where the recipe has none of that name or, with a
        model to start from, it would make other latents; `ModelNotFound` where the stage before isn't there;
        `Cancelled` where it was stopped while pictures were drawn or encoded, before the stage's first step."""
        lineage(self.recipe, name)
        if self._given is None and self._remakes_latents:
            raise InvalidRequest("this recipe goes on from a model: give one to start from, with --start")
        makes_latents = name in lineage(self.recipe, LATENTS)
        if self._given is not None and makes_latents and not self._own_latents:
            raise InvalidRequest(
                f"stage {name} makes other latents than those of {self._given.name}: leave it out, or begin in another "
                f"folder without --start"
            )
        if self._own_latents and not makes_latents and not self._begun(LATENTS):
            raise ModelNotFound(f"{self.folder}: stage {name} needs the latents of {LATENTS}: train that stage first")
        training = self._training(name)
        task = self._task(name, training)
        return train(
            task,
            training,
            self.folder / name,
            start=self._first(name, task),
            started_from=self._before(name),
            device=self.device,
            minutes=minutes,
            cancellation=self.cancellation,
            on_progress=self.on_progress,
        )

    def train_all(self, *, minutes: float | None = None, shares: Mapping[str, float] | None = None) -> bool:
        """All stages, or as many as fit into `minutes`; the next call goes on from there. Whether all are done.

        With `shares` of the minutes, each stage that hasn't begun gets the steps that fit into its own (`fit`).
        """
        deadline = None if minutes is None else time.monotonic() + 60.0 * minutes
        for name in self._stages():
            left = None if deadline is None else (deadline - time.monotonic()) / 60.0
            if left is not None and left <= 0.0:
                return False
            if minutes is not None and shares is not None:
                self.fit(name, minutes * shares[name])
            if not self.train(name, minutes=left).finished:
                return False
        return True

    def export(self, folder: Path, *, overwrite: bool = False) -> Path:
        """Write the averaged weights of the last diffusion stage that was begun, with the newest decoder, as a model
        folder in float16. Returns that stage's run. `ModelNotFound` where none was."""
        name = self._diffusion_stage
        if name is None:
            raise ModelNotFound(f"{self.folder}: no stage of the diffusion model was trained there")
        run = read_run(self.folder / name)
        assert isinstance(run.training, DiffusionTraining)
        publish_diffusion(
            trained_networks(run.training, run.weights),
            run.training,
            self.autoencoder(),
            self._tokenizer_folder,
            folder,
            overwrite=overwrite,
        )
        return self.folder / name

    @property
    def has_diffusion(self) -> bool:
        """Whether there is a diffusion model to export."""
        return self._diffusion_stage is not None

    def fit(self, name: str, minutes: float) -> int:
        """Give a stage that hasn't begun as many steps as take `minutes` on this machine, which is measured. Returns
        how many it has; they are kept in the stage's config.toml, so that a resumed run has the same."""
        training = self._training(name)
        path = self.folder / name / CONFIG
        if not path.is_file():
            task = self._task(name, training)
            steps = max(round(60.0 * minutes / _step_seconds(task, training, self._first(name, task), self.device)), 1)
            training = replace(training, run=replace(training.run, steps=steps))
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, to_toml(training))
        return training.run.steps

    def autoencoder(self) -> Autoencoder:
        """The autoencoder whose latents the diffusion model knows, with the newest decoder there is."""
        if not self._begun(DECODER):
            return self.latent_autoencoder
        return autoencoder_of_run(self.folder / DECODER)

    @cached_property
    def latent_autoencoder(self) -> Autoencoder:
        """The autoencoder as it was when its encoder was left alone, with latents of zero mean and unit variance."""
        if self._given is not None and not self._own_latents:
            return self._given.autoencoder()  # its latents were given mean and variance before it was published
        autoencoder = autoencoder_of_run(self.folder / LATENTS)
        path, encoder = self.folder / "latents.json", encoder_hash(autoencoder)
        values = read_object(path) if path.is_file() else {"encoder": ""}
        # the encoder may have learned more since; a file that doesn't say is of before it was noted
        if values.get("encoder", encoder) == encoder:
            statistics = ChannelStatistics(torch.tensor(values["mean"]), torch.tensor(values["deviation"]))
        else:
            statistics = channel_statistics(
                autoencoder.to(self.device), _batches(self._measured_pictures(), self.device)
            )
            values = {
                "encoder": encoder,
                "mean": statistics.mean.tolist(),
                "deviation": statistics.deviation.tolist(),
            }
            write_text(path, json.dumps(values, indent=1) + "\n", overwrite=True)
        whiten(autoencoder.cpu(), statistics)
        return autoencoder

    def _measured_pictures(self) -> Iterator[Tensor]:
        scenes = autoencoder_scenes(self._emoji, self.recipe[LATENTS].training.run.seed + 1)
        for i in range(self.measured):
            self.on_progress(Progress(stage="samples", step=i, steps=self.measured))
            self.cancellation.check()
            yield scaled(to_bytes(scenes.sample(i).picture))

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer.from_folder(self._tokenizer_folder)

    @property
    def _tokenizer_folder(self) -> Path:
        """The tokenizer's files, learned once from the drawings' captions and some scenes'."""
        folder = self.folder / "tokenizer"
        if self._given is not None:
            return self._given.tokenizer
        if not folder.is_dir():
            scenes = self._scenes()
            drawn = [caption for subject in self._emoji.subjects for caption in captions_of(subject)]
            composed = [caption for i in range(min(len(scenes), _WORD_SCENES)) for caption in scenes.record(i).captions]
            size = _text_encoder(self.recipe).vocab_size
            with atomic_folder(folder) as temporary:
                for name, text in train_tokenizer([*drawn, *composed], size).items():
                    (temporary / name).write_text(text, encoding="utf-8")
        return folder

    def moments(self, name: str) -> LatentDataset:
        """Encoded pictures: "drawings", "scenes" or "held-out"."""
        dataset = _PICTURES[name](self)
        return StoredLatents(
            encode_moments(
                dataset,
                self.latent_autoencoder.to(self.device),
                self.folder / "moments" / name,
                preparation=Preparation(width=SIDE, height=SIDE),
                batch=_ENCODED_TOGETHER if self.processes > 1 else 16,
                samples_per_part=_DRAWN_TOGETHER if self.processes > 1 else 8192,
                tokenizer=self.tokenizer,
                write=encode_in_processes(self.processes) if self.processes > 1 else None,
                on_progress=self.on_progress,
                cancellation=self.cancellation,
            )
        )

    def _drawn(self, dataset: Dataset, name: str) -> Dataset:
        """The data set, drawn beforehand where there are processes to do so: at most `rendered` of it."""
        if self.processes == 1:
            return dataset
        some = Subset(dataset, range(min(len(dataset), self.rendered)))
        return render(
            some,
            self.folder / "rendered" / name,
            processes=self.processes,
            on_progress=self.on_progress,
            cancellation=self.cancellation,
        )

    @cached_property
    def _emoji(self) -> EmojiSet:
        return open_emoji(self.emoji)

    def _drawings(self) -> Dataset:
        return Subset(self._emoji, [subject.index for subject in self._emoji.split("train", self.styles)])

    def _held_out(self) -> Dataset:
        """Pictures of labels that are known from other styles at best."""
        found = [s for split in ("held-out-picture", "held-out-label") for s in self._emoji.split(split, self.styles)]
        return Subset(self._emoji, [subject.index for subject in found])

    def _scenes(self, seed: int = 1, length: int | None = None) -> SceneSet:
        subjects = self._emoji.split("train", self.styles)
        return SceneSet(emoji=self._emoji, subjects=subjects, seed=seed, length=length or self.encoded, mix=self._mix)

    def _pictures(self, name: str, seed: int) -> Dataset:
        """What a stage of the autoencoder sees: all there is, but the last one what the diffusion model generates."""
        if name == DECODER:
            return self._scenes(seed, EPOCH)
        return autoencoder_scenes(self._emoji, seed, self._mix if self._remakes_latents else AUTOENCODER_MIX)

    def _training(self, name: str) -> Training:
        """The stage's config: the recipe's, or what the stage began with where that differs."""
        training, path = self.recipe[name].training, self.folder / name / CONFIG
        if path.is_file():
            return read_config(type(training), path)
        if self._given is not None and isinstance(training, DiffusionTraining):
            # a published model has no head, and its words don't need one any more
            return replace(training, caption_head=0.0)
        return training

    @cached_property
    def _given(self) -> KeptModel | None:
        """The model to start from, in this folder from the first call on. `InvalidRequest` where the folder has made
        latents of its own, `InvalidConfig` where it was begun with another model."""
        if self.start is not None:
            if not self._remakes_latents and self._begun(LATENTS):
                raise InvalidRequest(
                    f"{self.folder} has an autoencoder of its own: leave --start out, or begin in another folder"
                )
            keep_model(self.start, self.folder)
        return kept_model(self.folder)

    @property
    def _remakes_latents(self) -> bool:
        """Whether the recipe goes on with a model's autoencoder, too."""
        return self.recipe[LATENTS].start == MODEL

    @property
    def _own_latents(self) -> bool:
        """Whether an autoencoder that is trained here makes the latents, not that of the model given."""
        return self._given is None or self._remakes_latents

    @property
    def _mix(self) -> SceneMix:
        """What the diffusion model sees."""
        return MIX_AGAIN if self._remakes_latents else MIX

    def _stages(self) -> Iterator[str]:
        """The stages to train, in order: with a model to start from, those that begin with nothing are left out."""
        for name, stage in self.recipe.items():
            if self._own_latents or (stage.start is not None and name not in lineage(self.recipe, LATENTS)):
                yield name

    @property
    def _diffusion_stage(self) -> str | None:
        """The last stage of the diffusion model that has a checkpoint."""
        names = [name for name, stage in self.recipe.items() if isinstance(stage.training, DiffusionTraining)]
        return next((name for name in reversed(names) if self._begun(name)), None)

    def _begun(self, name: str) -> bool:
        return is_begun(self.folder / name)

    def _before(self, name: str) -> str:
        """What a stage's first weights are from: the stage before, the model to start from, or nothing."""
        start = self.recipe[name].start
        if start is None:
            return "scratch"
        return start if self._given is None or (start != MODEL and self._begun(start)) else self._given.name

    def _first(self, name: str, task: Task) -> nn.Module | None:
        """The first weights of a stage that starts from another, or from the model where that isn't there."""
        start, training = self.recipe[name].start, self.recipe[name].training
        if start is None or self._begun(name):
            return None
        if name == DECODER:
            weights = _within_task(self.latent_autoencoder)
        elif self._given is not None and isinstance(task, AutoencoderTask):
            weights = _within_task(self._given.autoencoder())
        elif self._given is not None and (start == MODEL or not self._begun(start)):
            weights = self._given.weights()
        else:
            weights = weights_of_run(self.folder / start)
        return first_module(task, weights, training.run.seed)

    def _task(self, name: str, training: Training) -> Task:
        if isinstance(training, AutoencoderTraining):
            scenes = self._drawn(self._pictures(name, training.run.seed), name)
            return AutoencoderTask(training, scenes, held_out_pictures(self._emoji, 64))
        latents, held_out = self.moments(_ENCODED[name]), self.moments("held-out")
        if isinstance(training, TextTraining):
            return TextTask(training, latents, self.tokenizer, held_out)
        autoencoder = self.autoencoder().to(self.device)
        validation = Validation(samples=held_out, prompts=PROMPTS, decode=autoencoder.decode)
        return DiffusionTask(training, latents, self.tokenizer, validation)


_PICTURES: Mapping[str, Callable[[Pocket], Dataset]] = {
    "drawings": Pocket._drawings,
    "scenes": Pocket._scenes,
    "held-out": Pocket._held_out,
}
_ENCODED = {  # stage: what it is trained on
    "words": "drawings",
    "drawings": "drawings",
    "annealed": "drawings",
    "scenes": "scenes",
    "scenes-annealed": "scenes",
    "scenes-again": "scenes",
}


def autoencoder_scenes(emoji: EmojiSet, seed: int, mix: SceneMix = AUTOENCODER_MIX) -> SceneSet:
    """Scenes of the training part, in every style."""
    return SceneSet(emoji=emoji, subjects=emoji.split("train"), seed=seed, length=EPOCH, mix=mix)


def held_out_pictures(emoji: EmojiSet, count: int) -> list[Image.Image]:
    """Emoji on white that no scene shows, spread over the held-out part: half of pictures, half of labels."""
    found = []
    for split in ("held-out-picture", "held-out-label"):
        subjects = emoji.split(split)
        wanted = count // 2
        found += [subjects[i * len(subjects) // wanted] for i in range(wanted)]
    return [on_background(emoji.sample(subject.index).picture) for subject in found]


def _within_task(autoencoder: Autoencoder) -> dict[str, Tensor]:
    """The autoencoder's weights by their names in `TrainedAutoencoder`."""
    return {f"autoencoder.{name}": tensor for name, tensor in autoencoder.state_dict().items()}


def _text_encoder(recipe: Recipe) -> ClipTextConfig:
    return next(stage.training for stage in recipe.values() if isinstance(stage.training, TextTraining)).text_encoder


def _step_seconds(task: Task, training: Training, start: nn.Module | None, device: torch.device) -> float:
    """What one step takes, from runs of few steps and of more, which are thrown away."""

    def seconds(steps: int) -> float:
        run = replace(training.run, steps=steps, validate_every=0)
        with TemporaryDirectory() as folder:
            begin = time.monotonic()
            train(task, replace(training, run=run), Path(folder), start=copy.deepcopy(start), device=device)
            return time.monotonic() - begin

    seconds(_WARM_STEPS)  # the first steps of all wait for libraries to load and for kernels to be chosen
    few, more = seconds(_WARM_STEPS), seconds(_WARM_STEPS + _TIMED_STEPS)
    return max(more - few, 1e-3) / _TIMED_STEPS


def _batches(pictures: Iterable[Tensor], device: torch.device, size: int = 32) -> Iterator[Tensor]:
    waiting = iter(pictures)
    while batch := list(itertools.islice(waiting, size)):
        yield torch.stack(batch).to(device)
