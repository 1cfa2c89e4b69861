"""A model to go on from, kept beside the runs that start from it, so that they go on without the one it was.

    FOLDER/start/             unet/, vae/, text_encoder/ and tokenizer/ in diffusers' layout, as they were
    FOLDER/start/start.json   the model's name, and the SHA-256 of its weights

Mean and deviation of its latents are folded into its autoencoder already.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from sfumato.errors import InvalidConfig, ModelNotFound
from sfumato.files import atomic_folder, file_sha256, make_folder, write_text
from sfumato.json_files import read_object
from sfumato.modelfiles.model_parts import NETWORKS, VAE, read_part
from sfumato.modelfiles.publish_model import write_tokenizer
from sfumato.models.autoencoder import Autoencoder
from sfumato.prompt.tokenizer import tokenizer_files
from sfumato.weights.checkpoint import find_weights

_FOLDER, _DESCRIPTION = "start", "start.json"


@dataclass(frozen=True, slots=True)
class KeptModel:
    """The model in `folder`, by its parts."""

    folder: Path

    @property
    def name(self) -> str:
        """The model's name, and which it is."""
        described = read_object(self.folder / _DESCRIPTION)
        return f"{described['model']} (UNet's sha256 {described['sha256']['unet'][:12]})"

    @property
    def tokenizer(self) -> Path:
        return self.folder / "tokenizer"

    def autoencoder(self) -> Autoencoder:
        """The model's autoencoder in float32, ready to encode."""
        return read_part(self.folder / "vae", VAE)

    def weights(self) -> dict[str, Tensor]:
        """The weights of UNet and text encoder, of any shape, by their names in `LatentDiffusion`."""
        parts = {name: read_part(self.folder / name, NETWORKS[name]).state_dict() for name in ("unet", "text_encoder")}
        return {f"{name}.{key}": tensor for name, state in parts.items() for key, tensor in state.items()}


def kept_model(folder: Path) -> KeptModel | None:
    """The model that the runs in `folder` were begun with, None where they were begun with nothing."""
    kept = folder / _FOLDER
    return KeptModel(kept) if (kept / _DESCRIPTION).is_file() else None


def keep_model(model: Path, folder: Path) -> None:
    """Put a model folder beside the runs in `folder`.

    `ModelNotFound` where a part is missing, `InvalidConfig` where they were begun with another model.
    """
    weights = {name: find_weights(model / name) for name in NETWORKS}
    for path in weights.values():
        if path.suffix != ".safetensors":
            raise InvalidConfig(f"{path}: a model to start from has each part in one .safetensors file: convert it "
                                f"with sfumato convert")  # fmt: skip
    digests = {name: file_sha256(path) for name, path in weights.items()}
    kept = folder / _FOLDER
    if (kept / _DESCRIPTION).is_file():
        if read_object(kept / _DESCRIPTION)["sha256"] != digests:
            raise InvalidConfig(f"{folder} was begun with another model than {model}: leave --start out, or give "
                                f"another --out")  # fmt: skip
        return
    if not (model / "tokenizer").is_dir():
        raise ModelNotFound(
            f"{model} has no tokenizer: a model to start from has unet, vae, text_encoder and tokenizer"
        )
    make_folder(folder)
    with atomic_folder(kept) as temporary:
        for name, path in weights.items():
            (temporary / name).mkdir()
            (temporary / name / "config.json").write_bytes((model / name / "config.json").read_bytes())
            (temporary / name / NETWORKS[name].file).write_bytes(path.read_bytes())
        write_tokenizer(tokenizer_files(model / "tokenizer"), temporary / "tokenizer")
        described = {"model": model.resolve().name, "sha256": digests}
        write_text(temporary / _DESCRIPTION, json.dumps(described, indent=1) + "\n")
