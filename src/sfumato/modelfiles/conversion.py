"""A model from one layout into another, tensor by tensor: lossless, strict, and never whole in memory."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sfumato.choices import check_choice
from sfumato.errors import InvalidRequest, OutputError
from sfumato.files import atomic_folder, atomic_write
from sfumato.modelfiles.model_parts import NETWORKS, VARIANTS, Part, write_part
from sfumato.modelfiles.open_model import (
    CHECKER_KEY,
    GUIDANCE_KEY,
    METADATA_KEY,
    LayoutName,
    ModelFiles,
    open_model,
    published_v1,
    read_tokenizer,
)
from sfumato.modelfiles.publish_model import write_frame
from sfumato.models import compvis
from sfumato.models.diffusers_folder import CHECKER_PARTS
from sfumato.prompt.tokenizer import Tokenizer
from sfumato.runtime import DTYPES, logger
from sfumato.weights.mapped_file import TensorInfo
from sfumato.weights.mapper import Layout, written_entries
from sfumato.weights.save import write_safetensors


def convert(
    source: Path,
    destination: Path,
    *,
    layout: LayoutName,
    dtype: str | None = None,
    vae: Path | None = None,
    ema: bool = True,
    variant: str | None = None,
    max_shard_size: int | None = None,
    overwrite: bool = False,
) -> None:
    """Write the model at `source` to `destination` in `layout`; `dtype` None keeps every tensor's own.

    "diffusers" makes a folder, "compvis" one file: `.safetensors`, or `.ckpt` for programs that read nothing else
    (which, unlike the others, is whole in memory while it is written). A safety checker goes along into a folder; a
    single file has no place for one. `vae` and `ema` choose as in `open_model`. `variant` "fp16" or "bf16" writes a
    folder's weights in that dtype under its name (`….fp16.safetensors`); `max_shard_size`, in bytes, splits its larger
    weight files. The destination appears whole or not at all; `overwrite` replaces a file or a model's
    folder. Raises what opening and writing raise, and `InvalidRequest` for a `max_shard_size` that can't be.
    """
    if max_shard_size is not None and (layout != "diffusers" or max_shard_size < 1):
        raise InvalidRequest(f"max_shard_size {max_shard_size} must be 1 or more, and the layout diffusers")
    _check_destination(destination, (source,) if vae is None else (source, vae), overwrite)
    chosen = _stored_dtype(dtype, variant, layout)
    with open_model(source, vae=vae, ema=ema) as files:
        if layout == "diffusers":
            _write_folder(files, destination, chosen, variant, max_shard_size, overwrite)
        else:
            _write_single_file(files, destination, chosen, overwrite)


def _stored_dtype(dtype: str | None, variant: str | None, layout: LayoutName) -> torch.dtype | None:
    """What all tensors are written as; None for each as it is. A variant's name promises a dtype."""
    if dtype is not None and dtype not in DTYPES:
        raise InvalidRequest(f"dtype {dtype!r} is unknown: use {', '.join(DTYPES)}")
    if variant is not None:
        check_choice("variant", variant, VARIANTS)
        if layout != "diffusers":
            raise InvalidRequest(
                f"variant {variant!r} names files in a folder: leave it out, or write layout diffusers"
            )
        if dtype not in (None, VARIANTS[variant]):
            raise InvalidRequest(f"variant {variant!r} holds {VARIANTS[variant]}, not {dtype}: leave one of them out")
        dtype = VARIANTS[variant]
    return getattr(torch, dtype) if dtype else None


def _check_destination(destination: Path, sources: tuple[Path, ...], overwrite: bool) -> None:
    """Refuse to replace what is being read, and folders that hold other things than a model."""
    for source in sources:
        if source.resolve().is_relative_to(destination.resolve()):
            raise InvalidRequest(f"{destination}: is or holds what is to be converted ({source}): write elsewhere")
    if not overwrite or not destination.is_dir() or (destination / "unet").is_dir():
        return
    if any(destination.iterdir()):
        raise OutputError(f"{destination}: not a model's folder, and so not replaced: choose another one")


class _Tensors:
    """What a file will hold: names and shapes now, numbers when they are asked for."""

    def __init__(self, dtype: torch.dtype | None) -> None:
        self.dtype = dtype
        self.infos: dict[str, TensorInfo] = {}
        self._read: dict[str, Callable[[], Tensor]] = {}

    def add(self, part: Part[Any], layout: Layout) -> None:
        sources = {entry.ours: entry.theirs for entry in part.entries}
        for entry in written_entries(part.module, layout):
            name, shape = sources[entry.ours], entry.shape
            own = part.checkpoint.tensors[name].dtype
            self.infos[entry.theirs] = TensorInfo(dtype=self.dtype or own, shape=shape)
            self._read[entry.theirs] = lambda c=part.checkpoint, n=name, s=shape: c.read(n, self.dtype).reshape(s)  # type: ignore[misc]

    def read(self, name: str) -> Tensor:
        """The tensor of this published name, in the shape and dtype of `infos`."""
        return self._read[name]()


def _write_folder(
    files: ModelFiles,
    destination: Path,
    dtype: torch.dtype | None,
    variant: str | None,
    max_shard_size: int | None,
    overwrite: bool,
) -> None:
    with atomic_folder(destination, overwrite=overwrite) as folder:
        for name, part in files.parts.items():
            network = NETWORKS[name]
            tensors = _Tensors(dtype)
            tensors.add(part, network.layout)
            config = part.module.config.to_published()
            write_part(
                folder / name,
                network,
                config,
                tensors.infos,
                tensors.read,
                variant=variant,
                max_shard_bytes=max_shard_size,
            )
        write_frame(
            folder,
            files.tokenizer,
            files.scheduler,
            checker=_copy_checker(files, folder),
            requires_safety_checker=files.requires_safety_checker,
            guidance_scale=files.guidance_scale,
        )


def _copy_checker(files: ModelFiles, folder: Path) -> frozenset[str]:
    """Take the safety checker and its preprocessor along; which of them there were."""
    there = {name for name in CHECKER_PARTS if files.safety_checker is not None and (files.path / name).is_dir()}
    for name in there:
        shutil.copytree(files.path / name, folder / name)
    return frozenset(there)


def _write_single_file(files: ModelFiles, destination: Path, dtype: torch.dtype | None, overwrite: bool) -> None:
    tensors = _Tensors(dtype)
    tensors.add(files.unet, compvis.unet_layout(files.unet.module.config))
    tensors.add(files.vae, compvis.autoencoder_layout(files.vae.module.config))
    tensors.add(files.text_encoder, compvis.text_layout())
    description = _description(files, tensors.infos)
    if destination.suffix == ".safetensors":
        metadata = {"format": "pt"}
        if description:
            metadata[METADATA_KEY] = json.dumps(description, sort_keys=True)
        if not files.requires_safety_checker:
            metadata[CHECKER_KEY] = "false"
        if files.guidance_scale is not None:
            metadata[GUIDANCE_KEY] = repr(files.guidance_scale)
        write_safetensors(destination, tensors.infos, tensors.read, metadata=metadata, overwrite=overwrite)
    elif destination.suffix == ".ckpt":
        if description:
            raise InvalidRequest(
                f"{destination}: a .ckpt can't hold what differs from v1 in this model's configs: use .safetensors"
            )
        if files.guidance_scale is not None:
            logger.warning(
                "%s: a .ckpt can't hold the guidance scale %g that this model recommends: it is left out",
                destination,
                files.guidance_scale,
            )
        with atomic_write(destination, overwrite=overwrite) as file:
            torch.save({"state_dict": {name: tensors.read(name) for name in tensors.infos}}, file)
    else:
        raise InvalidRequest(f"{destination}: a single file's name must end in .safetensors or .ckpt")


def _description(files: ModelFiles, infos: Mapping[str, TensorInfo]) -> dict[str, Any] | None:
    """What a reader can't tell from names and shapes: None for a model that is v1 in everything they don't show."""
    shapes = {name: info.shape for name, info in infos.items()}
    v1_tokenizer, v1_scheduler = published_v1()
    try:
        inferred = (compvis.infer_unet(shapes), compvis.infer_autoencoder(shapes), compvis.infer_text(shapes))
    except ValueError:  # its channels don't fit the groups that v1 has
        inferred = None
    configs = tuple(part.module.config for part in (files.unet, files.vae, files.text_encoder))
    same_tokenizer = _same_tokenizer(read_tokenizer(files), Tokenizer.from_files(v1_tokenizer, folder="v1"))
    if inferred == configs and same_tokenizer and files.scheduler == v1_scheduler:
        return None
    described = {name: part.module.config.to_published() for name, part in files.parts.items()}
    described["scheduler"] = dict(files.scheduler)
    if not same_tokenizer:
        described["tokenizer"] = _without_repetition(files.tokenizer)
    return described


def _same_tokenizer(a: Tokenizer, b: Tokenizer) -> bool:
    """Whether two tokenizers are the same, however many files say so."""
    same_frame = (a.bos_id, a.eos_id, a.pad_id, a.max_length) == (b.bos_id, b.eos_id, b.pad_id, b.max_length)
    return same_frame and json.loads(a.backend.to_str()) == json.loads(b.backend.to_str())


def _without_repetition(tokenizer: Mapping[str, str]) -> dict[str, str]:
    """Leave out `tokenizer.json` where it repeats the vocabulary: a file's header must stay small to be read safely."""
    repeated = {"vocab.json", "merges.txt"} <= tokenizer.keys()
    return {name: text for name, text in tokenizer.items() if not (repeated and name == "tokenizer.json")}
