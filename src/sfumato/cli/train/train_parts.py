"""What a run is begun with, as the command line names it: models, runs, tokenizers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from sfumato.files import user_path

if TYPE_CHECKING:
    from torch import Tensor

    from sfumato.models.autoencoder import Autoencoder

V1 = "v1"


def run_weights(name: str) -> Mapping[str, Tensor] | None:
    """The averaged weights of the run in the folder `name`, None where it is no run's folder."""
    from sfumato.train.stages import weights_of_run
    from sfumato.train.trainer import CONFIG

    path = user_path(name)
    return weights_of_run(path) if (path / CONFIG).is_file() else None


def autoencoder_weights(name: str) -> Mapping[str, Tensor]:
    """Of a run, or of a model's autoencoder, by their names in the task."""
    from sfumato.cli.models.autoencoders import load_autoencoder

    found = run_weights(name)
    if found is not None:
        return found
    return {f"autoencoder.{key}": tensor for key, tensor in load_autoencoder(name).state_dict().items()}


def diffusion_weights(name: str) -> Mapping[str, Tensor]:
    """UNet and text encoder of a run or a model, by their names in the task."""
    found = run_weights(name)
    return _of_model(name, ("unet", "text_encoder")) if found is None else found


def text_encoder_weights(name: str) -> Mapping[str, Tensor]:
    """The text encoder of a model, or of a run that has one."""
    found = run_weights(name)
    if found is None:
        return _of_model(name, ("text_encoder",))
    return {key: tensor for key, tensor in found.items() if key.startswith("text_encoder.")}


def clip_weights(name: str) -> Mapping[str, Tensor]:
    """Of a run, or of a CLIP model in transformers' layout."""
    from sfumato.caption_retrieval import Retriever

    found = run_weights(name)
    return dict(Retriever.from_folder(user_path(name)).model.state_dict()) if found is None else found


def autoencoder_for(name: str | None, start: str | None, run: Path) -> Autoencoder:
    """The one that is named, else the run's own, else that of the model the run starts from."""
    from sfumato.cli.models.autoencoders import load_autoencoder
    from sfumato.errors import InvalidRequest
    from sfumato.train.run_folder import kept_autoencoder
    from sfumato.train.trainer import CONFIG

    if name is not None:
        return load_autoencoder(name)
    kept = kept_autoencoder(run)
    if kept is not None:
        return kept
    if start is None:
        raise InvalidRequest("pictures need an autoencoder: give --autoencoder MODEL, or a run of train autoencoder")
    before = user_path(start)
    earlier = kept_autoencoder(before) if (before / CONFIG).is_file() else load_autoencoder(start)
    if earlier is None:
        raise InvalidRequest(f"{start} is no run of the diffusion model: give --autoencoder, too")
    return earlier


def tokenizer_files(name: str | None, start: str | None, run: Path) -> tuple[Mapping[str, str], Path]:
    """A tokenizer's files and where they are from: of the model or folder that is named, else the run's own, else those
    of the model or run that it starts from, else v1's."""
    from sfumato.train.run_folder import tokenizer_folder
    from sfumato.train.trainer import CONFIG

    if name is not None:
        return _files_of(name)
    if (run / CONFIG).is_file():
        return _in_folder(tokenizer_folder(run))
    if start is not None:
        before = user_path(start)
        return _in_folder(tokenizer_folder(before)) if (before / CONFIG).is_file() else _files_of(start)
    from sfumato.modelfiles.open_model import published_v1

    return published_v1()[0], Path(V1)


def _files_of(name: str) -> tuple[Mapping[str, str], Path]:
    from sfumato.modelfiles.model_library import resolve
    from sfumato.modelfiles.open_model import open_model

    path = user_path(name)
    if (path / "vocab.json").is_file() or (path / "tokenizer.json").is_file():
        return _in_folder(path)
    found = resolve(name).path
    with open_model(found) as files:
        return files.tokenizer, found


def _in_folder(folder: Path) -> tuple[Mapping[str, str], Path]:
    from sfumato.prompt.tokenizer import tokenizer_files

    return tokenizer_files(folder), folder


def _of_model(name: str, parts: tuple[str, ...]) -> Mapping[str, Tensor]:
    from sfumato.modelfiles.model_library import resolve
    from sfumato.modelfiles.open_model import open_model

    weights: dict[str, Tensor] = {}
    with open_model(resolve(name).path) as files:
        for part_name in parts:
            state = files.parts[part_name].load().state_dict()
            weights |= {f"{part_name}.{key}": tensor for key, tensor in state.items()}
    return weights


def write_card_of_run(run: Path, model: Path) -> None:
    """README.md and card.toml of a model that a run has made: what the run knows, the rest named as unknown."""
    from sfumato.report.card.facts_of_run import facts_of_run
    from sfumato.report.card.write_card import write_card

    write_card(model, facts_of_run(run, name=run.resolve().name), overwrite=True)
