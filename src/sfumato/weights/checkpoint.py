"""Opens any weight file safely: names → tensors, read lazily from a memory map."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Self

import torch
from torch import Tensor

from sfumato.errors import CheckpointError, InvalidRequest, ModelNotFound, UnsafeCheckpoint
from sfumato.files import plain_name
from sfumato.weights.mapped_file import MAX_TENSORS, MappedFile, MappedPages, StoredTensor, TensorInfo
from sfumato.weights.safetensors_file import bounded_json, read_safetensors
from sfumato.weights.torch_file import read_torch_legacy, read_torch_zip

__all__ = ["Checkpoint", "TensorInfo", "find_weights", "open_checkpoint"]

MAX_INDEX_BYTES = 4 * 2**20
MAX_SHARDS = 1000

_STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")  # diffusers' name, transformers', transformers' .bin


class Checkpoint:
    """An open weight file, or the shards of one. Close it, or use it in a `with` statement.

    `tensors` gives dtype and shape of every tensor by name, `metadata` what a safetensors file says about itself.
    """

    def __init__(
        self, path: Path, stored: Mapping[str, StoredTensor], metadata: Mapping[str, str], files: tuple[MappedFile, ...]
    ) -> None:
        self.path = path
        self.tensors: Mapping[str, TensorInfo] = MappingProxyType({name: entry.info for name, entry in stored.items()})
        self.metadata: Mapping[str, str] = MappingProxyType(dict(metadata))
        self._stored = stored
        self._files = files

    def read(self, name: str, dtype: torch.dtype | None = None, *, aligned: bool = False) -> Tensor:
        """The tensor `name`, of its stored shape, on the CPU, converted to `dtype` if that is given and differs.

        Unconverted it is a view of the mapped file that costs no memory until it is touched: use it as it is rather
        than copying it. `aligned` copies it where it doesn't lie as torch would lay it out, and only there: how a
        matrix lies decides the order of its products' sums on a CPU, and so the last bits. Writing to a view never
        changes the file, and it stays valid after `close`. Raises `CheckpointError` when there is no such tensor or
        the checkpoint is closed.
        """
        try:
            stored = self._stored[name]
        except KeyError:
            raise CheckpointError(f"{self.path}: has no tensor {name[:80]!r}") from None
        return stored.read(dtype, aligned=aligned)

    def is_aligned(self, name: str) -> bool:
        """Whether `read` gives the tensor where it lies in the file, also when it has to be `aligned`."""
        return self._stored[name].is_aligned

    def pages(self, name: str) -> MappedPages:
        """The memory behind the view that `read` gives of the tensor `name`."""
        stored = self._stored[name]
        return stored.file.pages(stored.start, stored.start + stored.info.nbytes)

    @property
    def files(self) -> tuple[Path, ...]:
        """The files with the tensors: itself, or the shards in the order of their names."""
        return tuple(file.path for file in self._files)

    def close(self) -> None:
        """Let go of the file. Tensors already read stay valid."""
        for file in self._files:
            file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a `.safetensors` file, a `*.safetensors.index.json` with its shards, or what `torch.save` wrote (`.ckpt`…).

    The format is told by the content, whatever the name. No code in the file is run, nothing is unpacked, and only the
    header is read. In a `torch.save` file tensors are named by their path ("model.weight"), a top-level "state_dict"
    being left out. Raises `ModelNotFound`, `CheckpointError` (damaged, or of no known format) or `UnsafeCheckpoint`.
    """
    path = Path(path)
    if path.is_dir():
        raise CheckpointError(f"{path}: a folder, not a weight file; open the files in it")
    if not path.exists():
        raise ModelNotFound(f"{path}: no such weight file; check the path")
    if not path.is_file():
        raise CheckpointError(f"{path}: not a file but a device or pipe; save the weights in a file first")
    if path.suffix == ".json":
        return _open_sharded(path)
    file = MappedFile(path)
    try:
        stored, metadata = _reader(file)(file)
    except BaseException:
        file.close()
        raise
    return Checkpoint(path, stored, metadata, (file,))


def find_weights(folder: Path, *, variant: str | None = None) -> Path:
    """Find the weight file (or shard index) of one component of a diffusers folder, such as `…/unet`.

    `variant` "fp16" asks for `*.fp16.safetensors` and falls back to the plain file. safetensors come before files of
    `torch.save`. Raises `ModelNotFound`.
    """
    for kind in ([f".{variant}"] if variant else []) + [""]:
        for suffix in (
            f"{kind}.safetensors",
            f".safetensors.index{kind}.json",
            f"{kind}.bin",
            f".bin.index{kind}.json",
        ):
            for stem in _STEMS:
                if (folder / f"{stem}{suffix}").is_file():
                    return folder / f"{stem}{suffix}"
    raise ModelNotFound(f"{folder}: no weights in it; expected {_STEMS[0]}.safetensors or {_STEMS[1]}.safetensors")


_Reader = Callable[[MappedFile], tuple[dict[str, StoredTensor], dict[str, str]]]


def _reader(file: MappedFile) -> _Reader:
    """Which reader the first bytes call for."""
    start = file.bytes(0, 64)
    if start.startswith(b"PK\x03\x04"):
        return read_torch_zip
    if start[8:9] == b"{":
        return read_safetensors
    if start[:1] == b"\x80" and start[1:2] in b"\x02\x03\x04\x05":
        return read_torch_legacy
    if start.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{file.path}: a Git LFS pointer, not the weights; fetch them with git lfs pull")
    if start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise CheckpointError(f"{file.path}: a web page, not weights; download the file itself")
    raise CheckpointError(
        f"{file.path}: neither safetensors nor a torch.save file; it starts with {start[:9].hex(' ')}"
    )


def _open_sharded(path: Path) -> Checkpoint:
    shard_of = _read_index(path)
    checkpoints: dict[str, Checkpoint] = {}
    try:
        for shard in sorted(set(shard_of.values())):
            if not (path.parent / shard).is_file():
                raise CheckpointError(f"{path}: its shard {shard} is missing; download it again")
            checkpoints[shard] = open_checkpoint(path.parent / shard)
        stored: dict[str, StoredTensor] = {}
        for name, shard in shard_of.items():
            if name not in checkpoints[shard].tensors:
                raise CheckpointError(f"{path}: its shard {shard} lacks the tensor {name[:80]!r}")
            stored[name] = checkpoints[shard]._stored[name]
    except BaseException:
        for checkpoint in checkpoints.values():
            checkpoint.close()
        raise
    metadata = {key: value for opened in checkpoints.values() for key, value in opened.metadata.items()}
    return Checkpoint(path, stored, metadata, tuple(file for opened in checkpoints.values() for file in opened._files))


def _read_index(path: Path) -> dict[str, str]:
    """Read the shard of each tensor, every shard's name checked to be that of a file beside the index."""
    try:
        if path.stat().st_size > MAX_INDEX_BYTES:
            raise UnsafeCheckpoint(
                f"{path}: an index of {path.stat().st_size} bytes; at most {MAX_INDEX_BYTES} are read"
            )
        index = bounded_json(path.read_bytes(), where=f"{path}: the index of shards")
    except OSError as error:
        raise CheckpointError(f"{path}: can't be read: {error.strerror or error}") from error
    shard_of = index.get("weight_map")
    if not isinstance(shard_of, dict) or not all(isinstance(shard, str) for shard in shard_of.values()):
        raise CheckpointError(f"{path}: not an index of shards: it has no weight_map from names to files")
    if len(shard_of) > MAX_TENSORS or len(set(shard_of.values())) > MAX_SHARDS:
        raise UnsafeCheckpoint(f"{path}: more than {MAX_TENSORS} tensors or {MAX_SHARDS} shards")
    for shard in set(shard_of.values()):
        try:
            plain_name(shard, what="shard")
        except InvalidRequest as error:
            raise UnsafeCheckpoint(f"{path}: refused: {error}") from error
        if not shard.endswith((".safetensors", ".bin")):
            raise UnsafeCheckpoint(f"{path}: refused: shard {shard!r} is not a weight file's name")
    return shard_of
