"""Pictures as the posteriors an autoencoder gives them: encoded once, read at random for ever after.

    FOLDER/manifest.json                  how they were made, and the parts with their hashes; written last
    FOLDER/moments-00000.safetensors      some thousand samples: moments, keys, captions, hashes of the pixels

Moments rather than samples: what training draws from them differs in every epoch. Each row has its captions beside it
in the same file, so that no shuffle can part them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sfumato.data.samples import Record, parse_fields
from sfumato.data.shards import MANIFEST
from sfumato.data.transforms import Pixels, Preparation
from sfumato.errors import CheckpointError, DataError, InvalidRequest
from sfumato.files import file_sha256, write_text
from sfumato.weights.checkpoint import Checkpoint, open_checkpoint
from sfumato.weights.mapped_file import TensorInfo
from sfumato.weights.save import write_safetensors

FORMAT = "sfumato moments 1"
_KEY = "sfumato.moments"
_OPEN_PARTS = 128  # mapped at once; each takes two descriptors


@dataclass(frozen=True, slots=True, kw_only=True)
class MomentsSpec:
    """All that decides the bytes, but for the data set. Hashes are SHA-256.

    `autoencoder` is that of the encoder's weights, `tokenizer` that of the tokenizer whose ids are stored beside the
    captions, "" where there are none. `batch` and `precision` change the last bits only. Wrong values raise
    `InvalidRequest`.
    """

    autoencoder: str
    preparation: Preparation
    samples: int
    samples_per_part: int
    batch: int
    precision: str
    tokenizer: str = ""

    def __post_init__(self) -> None:
        for name in ("samples", "samples_per_part", "batch"):
            if getattr(self, name) < 1:
                raise InvalidRequest(f"{name} {getattr(self, name)} must be at least 1")

    def values(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return dataclasses.asdict(self)

    def part(self, number: int) -> range:
        """The samples in a part."""
        first = number * self.samples_per_part
        return range(first, min(first + self.samples_per_part, self.samples))

    @property
    def parts(self) -> int:
        return -(-self.samples // self.samples_per_part)


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """Some samples as they are stored: mean and logvar (n, C, h, w) float16; of each sample its record's key and
    captions, the hash of the pixels that were encoded, and the token ids (captions, length) if there are any."""

    mean: Tensor
    logvar: Tensor
    keys: Sequence[str]
    captions: Sequence[tuple[str, ...]]
    pixels: Sequence[int]
    tokens: Sequence[Tensor] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Listed:
    """A finished part."""

    path: Path
    samples: int
    bytes: int
    sha256: str


class Part:
    """One mapped file. Raises `DataError` where it isn't what `write_part` made."""

    def __init__(self, path: Path) -> None:
        try:
            file = open_checkpoint(path)
            self._check(file)
        except (CheckpointError, FileNotFoundError) as error:
            raise DataError(f"{path} is no part of encoded pictures ({error}): encode them again") from error
        self._tensors = {name: file.read(name) for name in file.tensors}
        self.spec: Mapping[str, Any] = parse_fields(file.metadata[_KEY].encode(), f"{path}: its description")
        captions = int(self._tensors["caption_rows"][-1])
        self._check_ends("caption_rows", len(self), captions, path)
        for name, count in (("key", len(self)), ("caption", captions)):
            self._check_ends(f"{name}_ends", count, self._tensors[f"{name}_bytes"].numel(), path)

    @staticmethod
    def _check(file: Checkpoint) -> None:
        """Raise `CheckpointError` where a tensor is missing or of another kind."""
        shape = file.tensors["mean"].shape if "mean" in file.tensors else ()
        rows = shape[0] if len(shape) == 4 else 0
        expected = dict.fromkeys(("mean", "logvar"), (torch.float16, shape))
        expected |= {"pixels": (torch.int64, (rows,)), "caption_rows": (torch.int64, (rows + 1,))}
        for name, (dtype, size) in expected.items():
            if not rows or file.tensors.get(name) != TensorInfo(dtype=dtype, shape=size):
                raise CheckpointError(f"it has no {name} of {size}, {dtype}")
        for name, dtype in _TEXTS.items():
            if name not in file.tensors or file.tensors[name].dtype != dtype or len(file.tensors[name].shape) != 1:
                raise CheckpointError(f"it has no {name}")
        if _KEY not in file.metadata:
            raise CheckpointError("it doesn't say how it was made")

    def _check_ends(self, name: str, count: int, last: int, path: Path) -> None:
        ends = self._tensors[name]
        if ends.shape != (count + 1,) or ends[0] != 0 or ends[-1] != last or (ends[1:] < ends[:-1]).any():
            raise DataError(f"{path} is damaged: its {name} don't fit; encode it again")

    def __len__(self) -> int:
        return int(self._tensors["mean"].shape[0])

    def moments(self, row: int) -> tuple[Tensor, Tensor]:
        """Mean and logvar of a row, (C, h, w) float16 each, views of the file."""
        return self._tensors["mean"][row], self._tensors["logvar"][row]

    def key(self, row: int) -> str:
        return self._text("key", row)

    def captions(self, row: int) -> tuple[str, ...]:
        return tuple(self._text("caption", i) for i in self._captions(row))

    def tokens(self, row: int) -> Tensor | None:
        """Token ids of the captions of a row, (captions, length), None where none are stored."""
        rows = self._captions(row)
        return self._tensors["tokens"][rows.start : rows.stop] if "tokens" in self._tensors else None

    def stacked(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """All rows at once: mean and logvar (n, C, h, w), the captions' token ids (k, length), and how many captions
        each has (n,). `KeyError` where no tokens are stored."""
        tensors = self._tensors
        return tensors["mean"], tensors["logvar"], tensors["tokens"], tensors["caption_rows"].diff()

    def pixels(self, row: int) -> int:
        """The hash of what was encoded, as `pixels_hash` gives it."""
        return int(self._tensors["pixels"][row])

    def _captions(self, row: int) -> range:
        first, last = self._tensors["caption_rows"][row : row + 2].tolist()
        return range(first, last)

    def _text(self, name: str, i: int) -> str:
        first, last = self._tensors[f"{name}_ends"][i : i + 2].tolist()
        return bytes(self._tensors[f"{name}_bytes"][first:last].numpy()).decode(errors="replace")


_TEXTS = {
    f"{name}_{what}": dtype
    for name in ("key", "caption")
    for what, dtype in (("bytes", torch.uint8), ("ends", torch.int64))
}


class Moments:
    """Encoded samples, numbered as in the data set they come from. May be read from any thread, and copied to others.

    `autoencoder` is the hash of the encoder that made them.
    """

    def __init__(self, folder: Path, manifest: Mapping[str, Any], parts: Sequence[_Listed]) -> None:
        self.folder, self.manifest = folder, manifest
        self._parts = tuple(parts)
        self._samples_per_part: int = manifest["samples_per_part"]

    @property
    def autoencoder(self) -> str:
        return str(self.manifest["autoencoder"])

    @property
    def preparation(self) -> Preparation:
        return Preparation(**self.manifest["preparation"])

    def __len__(self) -> int:
        return int(self.manifest["samples"])

    def locate(self, index: int) -> tuple[Part, int]:
        """The part and the row of a sample."""
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        number, row = divmod(index, self._samples_per_part)
        return _opened(self._parts[number]), row

    def opened(self) -> list[Part]:
        """All parts, in order."""
        return [_opened(part) for part in self._parts]

    def record(self, index: int) -> Record:
        part, row = self.locate(index)
        return Record(key=part.key(row), captions=part.captions(row), fields={})

    def problems(self) -> list[str]:
        """What is wrong with the files, against the manifest's hashes; nothing if all is well."""
        found = []
        for part in self._parts:
            with part.path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != part.sha256:
                    found.append(f"{part.path} has changed since it was made (SHA-256): copy or encode it again")
        return found


def open_moments(folder: Path, *, autoencoder: str | None = None, preparation: Preparation | None = None) -> Moments:
    """The encoded samples in a folder. `DataError` where they aren't finished or whole, and where they were made by
    another autoencoder (`autoencoder` is its hash) or from pictures prepared in another way than asked for."""
    path = folder / MANIFEST
    manifest = read_manifest(folder)
    try:
        spec = MomentsSpec(
            **{
                field.name: manifest[field.name]
                for field in dataclasses.fields(MomentsSpec)
                if field.name != "preparation"
            },
            preparation=Preparation(**manifest["preparation"]),
        )
        listed = [_Listed(path=part_path(folder, i), **entry) for i, entry in enumerate(manifest["parts"])]
        counts = [part.samples for part in listed]
    except (KeyError, TypeError, InvalidRequest) as error:
        raise DataError(f"{path} is damaged ({error!r:.80}): encode the pictures again") from error
    if counts != [len(spec.part(number)) for number in range(spec.parts)]:
        raise DataError(f"{path} is damaged: its parts don't add up to {spec.samples} samples")
    for part in listed:
        size = part.path.stat().st_size if part.path.is_file() else None
        if size != part.bytes:
            what = "is missing" if size is None else f"has {size} bytes, not {part.bytes}"
            raise DataError(f"{part.path} {what}, against {MANIFEST}: copy or encode it again")
    moments = Moments(folder, manifest, listed)
    for name, wanted, found in (
        ("autoencoder", autoencoder, moments.autoencoder),
        ("preparation", preparation, moments.preparation),
    ):
        if wanted is not None and wanted != found:
            raise DataError(
                f"{folder} was encoded with another {name} ({found!s:.60}, not {wanted!s:.60}): encode again"
            )
    return moments


def read_manifest(folder: Path) -> dict[str, Any]:
    """What is said of the encoded pictures in a folder. `DataError` where there are none."""
    path = folder / MANIFEST
    if not path.is_file():
        raise DataError(f"{folder} has no {MANIFEST}: it holds no encoded pictures, or their encoding wasn't finished")
    manifest = parse_fields(path.read_bytes(), str(path))
    if manifest.get("format") != FORMAT:
        raise DataError(f"{path} has format {manifest.get('format')!r:.60}: encoded pictures have {FORMAT!r}")
    return manifest


def is_moments(folder: Path) -> bool:
    """Whether a folder holds encoded pictures, finished or not."""
    return part_path(folder, 0).exists()


def part_path(folder: Path, number: int) -> Path:
    return folder / f"moments-{number:05d}.safetensors"


def pixels_hash(pixels: Pixels) -> int:
    """Hash what is encoded: 63 bits of BLAKE2b."""
    return int.from_bytes(hashlib.blake2b(pixels.tobytes(), digest_size=8).digest(), "little") >> 1


def write_part(path: Path, encoded: Encoded, spec: MomentsSpec) -> None:
    """Write some samples, whole or not at all, in the place of what was there. `OutputError` where that fails."""
    captions = [caption for several in encoded.captions for caption in several]
    tensors = {
        "mean": encoded.mean,
        "logvar": encoded.logvar,
        "pixels": torch.tensor(encoded.pixels, dtype=torch.int64),
        "caption_rows": _ends(encoded.captions),
        **_packed("key", encoded.keys),
        **_packed("caption", captions),
    }
    if encoded.tokens:
        tensors["tokens"] = torch.stack(list(encoded.tokens)).to(torch.int32)
    write_safetensors(
        path,
        {name: TensorInfo(dtype=tensor.dtype, shape=tuple(tensor.shape)) for name, tensor in tensors.items()},
        tensors.__getitem__,
        metadata={_KEY: json.dumps(spec.values(), sort_keys=True)},
        overwrite=True,
    )


def write_manifest(folder: Path, spec: MomentsSpec) -> None:
    """Declare the parts in a folder finished."""
    parts = []
    for number in range(spec.parts):
        path = part_path(folder, number)
        size, digest = path.stat().st_size, file_sha256(path)
        parts.append({"samples": len(spec.part(number)), "bytes": size, "sha256": digest})
    manifest = {"format": FORMAT, **spec.values(), "parts": parts}
    write_text(folder / MANIFEST, json.dumps(manifest, indent=1) + "\n", overwrite=True)


def _ends(rows: Sequence[Sequence[object] | bytes]) -> Tensor:
    """Where each of several neighbours ends, 0 before the first: (n + 1,) int64."""
    return torch.tensor([0, *(len(row) for row in rows)], dtype=torch.int64).cumsum(0)


def _packed(name: str, texts: Sequence[str]) -> dict[str, Tensor]:
    """Texts as UTF-8 one behind the other, and where each ends."""
    rows = [text.encode(errors="replace") for text in texts]
    data = (
        torch.frombuffer(bytearray(b"".join(rows)), dtype=torch.uint8)
        if any(rows)
        else torch.empty(0, dtype=torch.uint8)
    )
    return {f"{name}_bytes": data, f"{name}_ends": _ends(rows)}


@lru_cache(maxsize=_OPEN_PARTS)
def _opened(part: _Listed) -> Part:
    """Mapped once: the hash tells a set from another one that took its place."""
    opened = Part(part.path)
    if len(opened) != part.samples:
        raise DataError(f"{part.path} has {len(opened)} samples, not {part.samples}: copy or encode it again")
    return opened
