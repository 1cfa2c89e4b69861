"""Encode a data set's pictures once, so that the diffusion model's training needs no autoencoder.

A sample's moments depend on the batch it is computed in, by a last bit now and then. So a part is always cut into the
same batches from its first sample on: killed and run again, the files are those of a run that wasn't.
"""

from __future__ import annotations

import copy
import hashlib
import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sfumato.data.moments import (
    Encoded,
    Moments,
    MomentsSpec,
    Part,
    open_moments,
    part_path,
    pixels_hash,
    read_manifest,
    write_manifest,
    write_part,
)
from sfumato.data.samples import Dataset
from sfumato.data.shards import MANIFEST
from sfumato.data.transforms import Pixels, Preparation
from sfumato.errors import DataError, InvalidRequest, NumericalError
from sfumato.files import locked, make_folder, remove_leftovers
from sfumato.models.autoencoder import Autoencoder
from sfumato.progress import Cancellation, OnProgress, Progress, ignore
from sfumato.prompt.tokenizer import Tokenizer
from sfumato.train.checkpoints import tensors_digest
from sfumato.train.inputs.caption_dropout import token_window
from sfumato.train.inputs.image_tensors import scaled
from sfumato.train.run_config import Precision

logger = logging.getLogger("sfumato")

_AHEAD = 3  # batches prepared beside the one that is computed
_COMPARED = 8  # samples of each finished part that are made again to see whether the data set is the same


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoding:
    """How samples of a data set become moments, but for the weights."""

    dataset: Dataset
    spec: MomentsSpec
    tokenizer: Tokenizer | None
    captions_required: bool


Count = Callable[[int], None]
WriteParts = Callable[[Encoding, Autoencoder, Path, Sequence[int], Count], None]
"""Makes the parts of these numbers in a folder, and tells how many samples it has encoded since it last told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Prepared:
    """One sample ready to be encoded."""

    key: str
    captions: tuple[str, ...]
    pixels: Pixels
    hash: int
    tokens: tuple[Tensor, ...]


def encoder_hash(autoencoder: Autoencoder) -> str:
    """SHA-256 of what makes latents of pictures: the encoder's weights as float32, and its norm groups, which the
    weights don't show. The decoder doesn't count, nor does the file or the dtype that the weights came in.
    """
    weights = {
        name: tensor.float().cpu()
        for name, tensor in autoencoder.state_dict().items()
        if name.startswith(("encoder.", "quant_conv."))
    }
    return hashlib.sha256(f"{tensors_digest(weights)} {autoencoder.config.norm_groups}".encode()).hexdigest()


def tokenizer_hash(tokenizer: Tokenizer) -> str:
    """SHA-256 of all that decides a caption's token ids."""
    ids = (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.max_length)
    return hashlib.sha256(f"{tokenizer.backend.to_str()} {ids}".encode()).hexdigest()


def encode_moments(
    dataset: Dataset,
    autoencoder: Autoencoder,
    folder: Path,
    *,
    preparation: Preparation,
    batch: int = 16,
    precision: Precision = "float32",
    samples_per_part: int = 8192,
    tokenizer: Tokenizer | None = None,
    captions_required: bool = True,
    workers: int = 1,
    write: WriteParts | None = None,
    on_progress: OnProgress = ignore,
    cancellation: Cancellation | None = None,
) -> Moments:
    """Encode every sample of `dataset` into `folder`, going on where an earlier call was stopped or killed.

    `preparation` makes pixels of a picture; `workers` threads do so ahead of the encoder, which computes in `precision`
    on the device its weights are on. `tokenizer` stores the captions' token ids, too. `write` has other machines do the
    work (`encode_on_ray`) in the place of this process.

    Raises `DataError` for a sample that can't be read or has no caption (unless they aren't `captions_required`), and
    where what is in the folder was made from other samples; `InvalidRequest` where it was made in another way;
    `NumericalError` for moments that aren't finite; `OutputError` where the folder can't be written or the disk is
    full. Parts that are finished stay.
    """
    spec = moments_spec(
        dataset,
        autoencoder,
        preparation=preparation,
        batch=batch,
        precision=precision,
        samples_per_part=samples_per_part,
        tokenizer=tokenizer,
    )
    encoding = Encoding(dataset=dataset, spec=spec, tokenizer=tokenizer, captions_required=captions_required)
    stop = cancellation or Cancellation()
    make_folder(folder)
    with locked(folder / ".lock"):
        missing = missing_parts(encoding, folder)
        done = spec.samples - sum(len(spec.part(number)) for number in missing)
        on_progress(Progress(stage="samples", step=done, steps=spec.samples))

        def count(samples: int) -> None:
            nonlocal done
            done += samples
            on_progress(Progress(stage="samples", step=done, steps=spec.samples))
            stop.check()

        (write or encode_here(workers))(encoding, autoencoder, folder, missing, count)
        if missing or not (folder / MANIFEST).exists():
            write_manifest(folder, spec)
    return open_moments(folder)


def encode_here(workers: int) -> WriteParts:
    """Make the parts in this process, with `workers` threads that prepare pictures."""

    def write(encoding: Encoding, autoencoder: Autoencoder, folder: Path, numbers: Sequence[int], count: Count) -> None:
        for number, encoded in _encoded_parts(encoding, autoencoder, numbers, workers, count):
            write_part(part_path(folder, number), encoded, encoding.spec)

    return write


def moments_spec(
    dataset: Dataset,
    autoencoder: Autoencoder,
    *,
    preparation: Preparation,
    batch: int,
    precision: Precision,
    samples_per_part: int,
    tokenizer: Tokenizer | None,
) -> MomentsSpec:
    """What `encode_moments` is asked for. `InvalidRequest` for a size that the autoencoder can't halve often enough,
    `DataError` for a data set of nothing."""
    factor, width, height = autoencoder.config.factor, preparation.width, preparation.height
    if width % factor or height % factor:
        raise InvalidRequest(f"pictures of {width}×{height} pixels: this autoencoder needs multiples of {factor}")
    if not len(dataset):
        raise DataError("there are no samples to encode: the data set is empty")
    return MomentsSpec(
        autoencoder=encoder_hash(autoencoder),
        preparation=preparation,
        samples=len(dataset),
        samples_per_part=samples_per_part,
        batch=batch,
        precision=precision,
        tokenizer=tokenizer_hash(tokenizer) if tokenizer else "",
    )


def missing_parts(encoding: Encoding, folder: Path) -> list[int]:
    """The parts still to be made, once those that are there have been compared with what is asked for.

    `InvalidRequest` names what differs in how they were made; `DataError` says that they are of other samples.
    """
    spec = encoding.spec
    if (folder / MANIFEST).exists():
        _refuse_another(read_manifest(folder), spec, folder)
    remove_leftovers(folder)
    missing = []
    for number in range(spec.parts):
        path = part_path(folder, number)
        part = _readable(path)
        if part is None:
            missing.append(number)
        else:
            _refuse_another(part.spec, spec, path)
            _compare(encoding, part, spec.part(number), path)
    return missing


def _encoded_parts(
    encoding: Encoding, autoencoder: Autoencoder, numbers: Sequence[int], workers: int, count: Count
) -> Iterator[tuple[int, Encoded]]:
    """Encode those parts, one after the other."""
    encode = _Encoder(autoencoder, half=encoding.spec.precision == "bfloat16")
    batches = [
        (number, samples[i : i + encoding.spec.batch])
        for number in numbers
        for samples in (encoding.spec.part(number),)
        for i in range(0, len(samples), encoding.spec.batch)
    ]
    prepared: list[_Prepared] = []
    moments: list[Tensor] = []
    with ThreadPoolExecutor(workers, thread_name_prefix="samples") as threads:
        for number, batch in _ahead(encoding, batches, threads):
            prepared += batch
            moments.append(encode(batch))
            count(len(batch))
            if len(prepared) == len(encoding.spec.part(number)):
                yield number, _joined(prepared, torch.cat(moments))
                prepared, moments = [], []


class _Encoder:
    """The autoencoder as it computes fastest; the one that was given stays as it is."""

    def __init__(self, autoencoder: Autoencoder, *, half: bool) -> None:
        self._device, self._half = next(autoencoder.parameters()).device, half
        # on a CPU channels_last is no faster in bfloat16 and slower in float32
        self._layout = torch.contiguous_format if self._device.type == "cpu" else torch.channels_last
        self._autoencoder = copy.deepcopy(autoencoder).eval().to(memory_format=self._layout)  # type: ignore[call-overload]

    @torch.inference_mode()
    def __call__(self, batch: Sequence[_Prepared]) -> Tensor:
        """Encode n samples to (n, 2, C, h, w) float16: mean and logvar. Raises `NumericalError` naming the sample."""
        pixels = torch.from_numpy(np.stack([sample.pixels for sample in batch])).to(self._device)
        pictures = scaled(pixels.permute(0, 3, 1, 2)).contiguous(memory_format=self._layout)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._half):
            posterior = self._autoencoder.encode(pictures)
        moments = torch.stack([posterior.mean, posterior.logvar], dim=1).half().cpu()
        finite = moments.isfinite().flatten(1).all(dim=1)
        if not finite.all():
            key = batch[int(finite.int().argmin())].key
            raise NumericalError(f"sample {key!r:.80}: its moments are not finite numbers: look at it, or use float32")
        return moments


def _ahead(
    encoding: Encoding, batches: Sequence[tuple[int, range]], threads: ThreadPoolExecutor
) -> Iterator[tuple[int, list[_Prepared]]]:
    """The batches in order, prepared while the ones before are computed."""
    waiting: deque[tuple[int, list[Future[_Prepared]]]] = deque()
    upcoming = iter(batches)
    try:
        while True:
            while len(waiting) <= _AHEAD and (batch := next(upcoming, None)) is not None:
                waiting.append((batch[0], [threads.submit(_prepared, encoding, index) for index in batch[1]]))
            if not waiting:
                return
            number, futures = waiting.popleft()
            yield number, [future.result() for future in futures]
    finally:
        threads.shutdown(wait=False, cancel_futures=True)


def _prepared(encoding: Encoding, index: int) -> _Prepared:
    sample = encoding.dataset.sample(index)
    if encoding.captions_required and not sample.captions:
        raise DataError(f"sample {sample.key!r:.80} has no caption: give it one, or allow samples without")
    pixels = encoding.spec.preparation(sample.picture)
    tokenizer = encoding.tokenizer
    return _Prepared(
        key=sample.key,
        captions=sample.captions,
        pixels=pixels,
        hash=pixels_hash(pixels),
        tokens=tuple(token_window(tokenizer, caption) for caption in sample.captions) if tokenizer else (),
    )


def _joined(prepared: Sequence[_Prepared], moments: Tensor) -> Encoded:
    return Encoded(
        mean=moments[:, 0].contiguous(),
        logvar=moments[:, 1].contiguous(),
        keys=[sample.key for sample in prepared],
        captions=[sample.captions for sample in prepared],
        pixels=[sample.hash for sample in prepared],
        tokens=[tokens for sample in prepared for tokens in sample.tokens],
    )


def _readable(path: Path) -> Part | None:
    """The part at `path`, None where there is none or only a damaged one."""
    if not path.exists():
        return None
    try:
        return Part(path)
    except DataError as error:
        logger.warning("%s; that is done now", error)
        return None


def _refuse_another(made: Mapping[str, object], spec: MomentsSpec, where: Path) -> None:
    """Raise `InvalidRequest` where something there was made in another way."""
    for name, wanted in spec.values().items():
        if made.get(name) != wanted:
            raise InvalidRequest(
                f"{where} was made with {name} {made.get(name)!s:.80}, not {wanted!s:.80}: give another folder"
            )


def _compare(encoding: Encoding, part: Part, samples: range, path: Path) -> None:
    """Raise `DataError` where some of a finished part's samples aren't what the data set gives today."""
    if len(part) != len(samples):
        raise DataError(f"{path} has {len(part)} samples, not {len(samples)}: delete it, and encode again")
    count = min(_COMPARED, len(samples))
    for row in {i * (len(samples) - 1) // max(count - 1, 1) for i in range(count)}:
        sample = _prepared(encoding, samples[row])
        if (sample.key, sample.captions, sample.hash) != (part.key(row), part.captions(row), part.pixels(row)):
            raise DataError(
                f"{path} was made from other samples: its number {row} was {part.key(row)!r:.60}, and is now "
                f"{sample.key!r:.60} or another picture or caption: give another folder"
            )
