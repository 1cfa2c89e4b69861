"""First weights by the name of what they are from: a run, or a model. They have their names in the task's module."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from sfumato.caption_retrieval import Retriever
from sfumato.files import user_path
from sfumato.modelfiles.model_library import resolve
from sfumato.modelfiles.open_model import open_model
from sfumato.train.run_folder import is_run
from sfumato.train.runs.autoencoders import load_autoencoder
from sfumato.train.runs.run_weights import weights_of_run

Weights = Mapping[str, Tensor]


def autoencoder_weights(name: str) -> Weights:
    """The weights of a run, or of a model's autoencoder. Raises as `load_autoencoder` does."""
    found = _run_weights(name)
    if found is not None:
        return found
    return {f"autoencoder.{key}": tensor for key, tensor in load_autoencoder(name).state_dict().items()}


def diffusion_weights(name: str) -> Weights:
    """UNet and text encoder of a run or a model. Raises as `open_model` does."""
    found = _run_weights(name)
    return _of_model(name, ("unet", "text_encoder")) if found is None else found


def text_encoder_weights(name: str) -> Weights:
    """The text encoder of a model, or of a run that has one. Raises as `open_model` does."""
    found = _run_weights(name)
    if found is None:
        return _of_model(name, ("text_encoder",))
    return {key: tensor for key, tensor in found.items() if key.startswith("text_encoder.")}


def clip_weights(name: str) -> Weights:
    """The weights of a run, or of a CLIP model in transformers' layout. Raises as `Retriever.from_folder` does."""
    found = _run_weights(name)
    return dict(Retriever.from_folder(user_path(name)).model.state_dict()) if found is None else found


def _run_weights(name: str) -> Weights | None:
    """The averaged weights of the run in the folder `name`, None where it is no run's folder."""
    path = user_path(name)
    return weights_of_run(path) if is_run(path) else None


def _of_model(name: str, parts: tuple[str, ...]) -> Weights:
    weights: dict[str, Tensor] = {}
    with open_model(resolve(name).path) as files:
        for part_name in parts:
            state = files.parts[part_name].load().state_dict()
            weights |= {f"{part_name}.{key}": tensor for key, tensor in state.items()}
    return weights
