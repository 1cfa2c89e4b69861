"""A model as it lies on disk, in either layout: its parts with their configs, matched name by name, not yet read.

Loading, converting and inspecting all start from `open_model`.
"""

from __future__ import annotations

import fnmatch
import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sfumato.errors import CheckpointError, InvalidConfig, ModelNotFound
from sfumato.json_files import parse_object, read_object
from sfumato.modelfiles.model_parts import (
    TEXT_ENCODER,
    UNET,
    VAE,
    Module,
    Network,
    Part,
    component_weights,
    matched,
    naming,
    open_part,
)
from sfumato.models import autoencoder, compvis
from sfumato.models.autoencoder import Autoencoder, AutoencoderConfig
from sfumato.models.clip_text import ClipText, ClipTextConfig
from sfumato.models.diffusers_folder import GUIDANCE_ENTRY
from sfumato.models.unet import UNet
from sfumato.models.unet_config import UNetConfig
from sfumato.nn.empty import empty_modules
from sfumato.prompt.tokenizer import TOKENIZER_FILES, Tokenizer, tokenizer_files
from sfumato.weights.checkpoint import Checkpoint, open_checkpoint

logger = logging.getLogger("sfumato")

# The published v1 tokenizer and configs: what a single file of v1 leaves out.
V1 = Path(__file__).parents[1] / "assets" / "v1"
# Where a single file that we write says what its shapes don't.
METADATA_KEY = "sfumato.model"
# "false" there: its makers say that it needs no safety checker. A folder says so in `model_index.json`.
CHECKER_KEY = "sfumato.requires_safety_checker"
# The guidance scale its makers recommend; in a folder `_guidance_scale` of `model_index.json`.
GUIDANCE_KEY = "sfumato.guidance_scale"

LayoutName = Literal["diffusers", "compvis"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFiles:
    """The parts of a model, its tokenizer's files by name, its scheduler's JSON, and its safety checker's folder.

    `requires_safety_checker` is false where its makers say so; `guidance_scale` is what they recommend. `ema`
    says whether the UNet's numbers are the moving average of a file that holds the last step too.
    """

    path: Path
    layout: LayoutName
    unet: Part[UNet]
    vae: Part[Autoencoder]
    text_encoder: Part[ClipText]
    tokenizer: Mapping[str, str] = field(repr=False)
    scheduler: Mapping[str, Any]
    safety_checker: Path | None = None
    requires_safety_checker: bool = True
    guidance_scale: float | None = None
    ema: bool = False

    @property
    def last_step(self) -> bool:
        """Whether the UNet is the last step of a file that has its moving average too."""
        return not self.ema and compvis.has_ema(self.unet.checkpoint.tensors)

    @property
    def parts(self) -> Mapping[str, Part[Any]]:
        """The networks by the names of the diffusers layout's folders."""
        return {"text_encoder": self.text_encoder, "unet": self.unet, "vae": self.vae}


@contextmanager
def open_model(
    path: Path, *, vae: Path | None = None, ema: bool = True, variant: str | None = None
) -> Iterator[ModelFiles]:
    """Open a diffusers folder or a single file, told apart by what they are.

    `vae` puts another autoencoder in the place of the model's own. `ema` takes the moving average of a single file that
    holds both it and the last step. `variant` "fp16" prefers a folder's half-precision files. Raises `ModelNotFound`,
    `CheckpointError` (with the tensor's name) or `InvalidConfig`.
    """
    with ExitStack() as stack:
        yield (_open_folder if path.is_dir() else _open_file)(path, vae, ema, variant, stack)


def _open_folder(path: Path, vae: Path | None, ema: bool, variant: str | None, stack: ExitStack) -> ModelFiles:
    if not (path / "unet").is_dir():
        raise ModelNotFound(f"{path} is not a model: a diffusers folder has unet/, vae/, text_encoder/ and tokenizer/")

    def part(name: str, network: Network[Module]) -> Part[Module]:
        return stack.enter_context(open_part(path / name, network, variant=variant))

    checker, index_file = path / "safety_checker", path / "model_index.json"
    index = read_object(index_file) if index_file.is_file() else {}
    return ModelFiles(
        path=path,
        layout="diffusers",
        unet=part("unet", UNET),
        vae=_other_autoencoder(vae, stack) if vae else part("vae", VAE),
        text_encoder=part("text_encoder", TEXT_ENCODER),
        tokenizer=_read_tokenizer(path / "tokenizer"),
        scheduler=read_object(path / "scheduler" / "scheduler_config.json"),
        safety_checker=checker if (checker / "config.json").is_file() and _has_weights(checker) else None,
        requires_safety_checker=index.get("requires_safety_checker") is not False,
        guidance_scale=_guidance_scale(index.get(GUIDANCE_ENTRY), index_file),
    )


def _open_file(path: Path, vae: Path | None, ema: bool, variant: str | None, stack: ExitStack) -> ModelFiles:
    checkpoint = stack.enter_context(open_checkpoint(path))
    described = _described(checkpoint)
    with naming(path):
        unet_config, vae_config, text_config = _configs(checkpoint, described, with_vae=vae is None)
        averaged = ema and compvis.has_ema(checkpoint.tensors)
        with empty_modules():
            files = ModelFiles(
                path=path,
                layout="compvis",
                unet=matched(
                    UNet(unet_config),
                    compvis.unet_layout(unet_config, ema=averaged),
                    checkpoint,
                    within=None if averaged else compvis.UNET,  # the averages' prefix is not theirs alone
                ),
                vae=_other_autoencoder(vae, stack)
                if vae
                else matched(
                    Autoencoder(vae_config),
                    compvis.autoencoder_layout(vae_config),
                    checkpoint,
                    within=compvis.AUTOENCODER,
                ),
                text_encoder=matched(
                    ClipText(text_config), compvis.text_layout(), checkpoint, within=compvis.TEXT_ENCODER
                ),
                tokenizer=described["tokenizer"] if described else published_v1()[0],
                scheduler=described["scheduler"] if described else published_v1()[1],
                requires_safety_checker=checkpoint.metadata.get(CHECKER_KEY) != "false",
                guidance_scale=_guidance_scale(checkpoint.metadata.get(GUIDANCE_KEY), path),
                ema=averaged,
            )
    _warn_of_strangers(checkpoint)  # of a model: what is none has an error of its own
    return files


def _guidance_scale(written: object, where: Path) -> float | None:
    """Read a recommended scale, a number or its text. `InvalidConfig` for anything else."""
    if written is None:
        return None
    try:
        scale = float(written)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        scale = -1.0
    if isinstance(written, bool) or not 0.0 <= scale <= 1000.0:
        raise InvalidConfig(f"{where}: the guidance scale {written!r:.60} is no number from 0 to 1000")
    return scale


def _configs(
    checkpoint: Checkpoint, described: Mapping[str, Any] | None, *, with_vae: bool
) -> tuple[UNetConfig, AutoencoderConfig, ClipTextConfig]:
    """Read the configs from the file's own description where there is one, else from its names and shapes."""
    if described:
        return (
            UNetConfig.from_published(described["unet"]),
            AutoencoderConfig.from_published(described["vae"]),
            ClipTextConfig.from_published(described["text_encoder"]),
        )
    shapes = _shapes(checkpoint)
    return (
        compvis.infer_unet(shapes),
        compvis.infer_autoencoder(shapes) if with_vae else AutoencoderConfig(),
        compvis.infer_text(shapes),
    )


@contextmanager
def open_autoencoder(path: Path) -> Iterator[Part[Autoencoder]]:
    """Open the autoencoder of a model in either layout, or one by itself: a `vae` folder or file.

    Raises as `open_model` does.
    """
    with ExitStack() as stack:
        if path.is_file() and _is_described(path):
            yield stack.enter_context(open_model(path)).vae
            return
        yield _other_autoencoder(path / "vae" if (path / "vae").is_dir() else path, stack)


def _is_described(path: Path) -> bool:
    """Whether a file says what its shapes don't."""
    with open_checkpoint(path) as checkpoint:
        return METADATA_KEY in checkpoint.metadata


def _other_autoencoder(path: Path, stack: ExitStack) -> Part[Autoencoder]:
    """Open an autoencoder of its own: a diffusers `vae` folder, or a file in either layout (A1111's `.vae.pt` too)."""
    if path.is_dir():
        return stack.enter_context(open_part(path, VAE))
    checkpoint = stack.enter_context(open_checkpoint(path))
    shapes = _shapes(checkpoint)
    with naming(path), empty_modules():
        kind, prefix = compvis.autoencoder_kind(shapes)
        if kind == "diffusers":
            return matched(Autoencoder(autoencoder.infer(shapes)), autoencoder.DIFFUSERS, checkpoint)
        config = compvis.infer_autoencoder(shapes, prefix=prefix)
        return matched(
            Autoencoder(config), compvis.autoencoder_layout(config, prefix=prefix), checkpoint, within=prefix
        )


def _shapes(checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
    return {name: info.shape for name, info in checkpoint.tensors.items()}


def _has_weights(folder: Path) -> bool:
    with suppress(ModelNotFound):
        return component_weights(folder).is_file()
    return False


def _warn_of_strangers(checkpoint: Checkpoint) -> None:
    """Fine-tunes carry tensors of tools we don't know beside the model's; they change nothing, but are said."""
    known = (compvis.UNET, compvis.AUTOENCODER, compvis.TEXT_ENCODER)
    strangers = [
        name
        for name in checkpoint.tensors
        if not name.startswith(known)
        and not any(fnmatch.fnmatchcase(name, pattern) for pattern in compvis.IGNORED_KEYS)
    ]
    if strangers:
        logger.warning("%s: %d tensors that no part uses, such as %s", checkpoint.path, len(strangers), strangers[0])


def _described(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """What a single file written by us says of itself: configs, scheduler, and the tokenizer's files if not v1's."""
    text = checkpoint.metadata.get(METADATA_KEY)
    if text is None:
        return None
    try:
        values = parse_object(text, where="it")
        described = {name: dict(values[name]) for name in ("unet", "vae", "text_encoder", "scheduler")}
        tokenizer = described["tokenizer"] = dict(values.get("tokenizer") or published_v1()[0])
        if not all(isinstance(tokenizer[name], str) for name in tokenizer) or set(tokenizer) - set(TOKENIZER_FILES):
            raise ValueError("its tokenizer's files are not what they should be")
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{checkpoint.path}: its description in {METADATA_KEY!r} is damaged: {error}") from error
    return described


def read_tokenizer(files: ModelFiles) -> Tokenizer:
    """Make the tokenizer from its files' texts. Raises `InvalidConfig` naming where they are from."""
    folder = files.path / "tokenizer" if files.layout == "diffusers" else files.path
    return Tokenizer.from_files(files.tokenizer, folder=folder)


def published_v1() -> tuple[dict[str, str], dict[str, Any]]:
    """Read the tokenizer's files and the scheduler's JSON of v1, which its single files leave out."""
    return _read_tokenizer(V1 / "tokenizer"), read_object(V1 / "scheduler" / "scheduler_config.json")


def _read_tokenizer(folder: Path) -> dict[str, str]:
    files = tokenizer_files(folder)
    if not files:
        raise ModelNotFound(f"{folder}: no tokenizer there; expected vocab.json and merges.txt")
    return files
