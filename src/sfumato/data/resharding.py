"""Any data set → a set of shards without copies and without what can't be used, resumable at any moment.

FOLDER/manifest.json, NAME-00000.tar, .npy     as `shards` has it; with buckets, one such folder WxH for each
FOLDER/shard.json                              how they were made, and the report once that is done
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sfumato.data.buckets import bucket_of, make_buckets
from sfumato.data.near_duplicates import without_near_duplicates
from sfumato.data.removals import Removals
from sfumato.data.samples import Dataset, StoredDataset, parse_fields
from sfumato.data.shard_writer import Encode, as_stored, as_webp, write_shard
from sfumato.data.shards import MANIFEST, Shard, index_path, manifest_text
from sfumato.data.survey import Outcome, Survey, survey
from sfumato.errors import DataError, InvalidRequest
from sfumato.files import (
    file_sha256,
    locked,
    make_folder,
    plain_name,
    publish,
    remove_leftovers,
    scratch_folder,
    write_text,
)
from sfumato.progress import Cancellation, OnProgress, Progress, ignore

NOTES = "shard.json"
_OUTCOMES: Mapping[Outcome, str] = {
    Outcome.UNREADABLE: "unreadable",
    Outcome.NO_CAPTION: "without a caption",
    Outcome.REMOVED: "on the list of removals",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardOptions:
    """How shards are made.

    `quality` encodes pictures anew as WebP (0 to 100, 101 is lossless); None copies them. Of pictures whose perceptual
    hashes differ by at most `near_duplicates` bits the first is kept; None keeps all. `bucket_side` puts pictures of
    like shape together, in folders named by the size they are to be trained at. Wrong values raise `InvalidRequest`.
    """

    name: str = "shard"
    samples_per_shard: int = 10_000
    quality: int | None = None
    near_duplicates: int | None = None
    bucket_side: int | None = None
    captions_required: bool = True

    def __post_init__(self) -> None:
        plain_name(self.name, what="the shards' name")
        if self.samples_per_shard < 1:
            raise InvalidRequest(f"samples_per_shard {self.samples_per_shard} must be at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardReport:
    """What making shards came to: `samples` were looked at and `kept`; `left_out` counts the others by reason;
    `folders` counts what is in each."""

    samples: int
    kept: int
    left_out: Mapping[str, int]
    folders: Mapping[str, int]


def make_shards(
    dataset: StoredDataset,
    folder: Path,
    options: ShardOptions | None = None,
    *,
    removals: Removals | None = None,
    workers: int = 1,
    on_progress: OnProgress = ignore,
    cancellation: Cancellation | None = None,
) -> ShardReport:
    """Look at every sample, and write those that can be used. Run again after a crash, it goes on; the bytes are the
    same. `DataError` where nothing is left, `InvalidRequest` where the folder was made in another way."""
    options, removals = options or ShardOptions(), removals or Removals()
    encode = as_stored(dataset) if options.quality is None else as_webp(dataset, options.quality)
    stop = cancellation or Cancellation()
    make_folder(folder)
    with locked(folder / ".lock"):
        remove_leftovers(folder)
        about = {"samples": len(dataset), "options": asdict(options), "removals": _digest(removals)}
        done = _begun(folder / NOTES, about)
        if done is not None:
            return ShardReport(**done)
        seen_folder = folder / ".survey"
        make_folder(seen_folder)
        seen = survey(
            dataset,
            seen_folder,
            removals=removals,
            captions_required=options.captions_required,
            workers=workers,
            on_progress=on_progress,
            cancellation=stop,
        )
        groups, left_out = _planned(seen, options)
        for written, (place, indices) in enumerate(groups.items()):
            on_progress(Progress(stage="samples", step=written, steps=len(groups)))
            _write(dataset, encode, indices, folder / place, options, stop)
        report = ShardReport(
            samples=len(dataset),
            kept=sum(map(len, groups.values())),
            left_out=left_out,
            folders={place: len(indices) for place, indices in groups.items()},
        )
        write_text(folder / NOTES, json.dumps({**about, "report": asdict(report)}, indent=1) + "\n", overwrite=True)
        shutil.rmtree(seen_folder, ignore_errors=True)
    return report


def _begun(notes: Path, about: Mapping[str, Any]) -> dict[str, Any] | None:
    """The report of a folder that is finished, None where there is work to do."""
    if not notes.exists():
        write_text(notes, json.dumps(about, indent=1) + "\n")
        return None
    before = parse_fields(notes.read_bytes(), str(notes))
    for name, value in about.items():
        if before.get(name) != value:
            raise InvalidRequest(f"{notes.parent} was begun with other {name} (see {notes.name}): give another folder")
    report = before.get("report")
    return report if isinstance(report, dict) else None


def _planned(seen: Survey, options: ShardOptions) -> tuple[dict[str, list[int]], dict[str, int]]:
    """The samples that go into each folder, in order, and how many go nowhere for which reason."""
    outcomes = Counter(int(outcome) for outcome in seen["fate"])
    left_out = {words: outcomes[outcome] for outcome, words in _OUTCOMES.items() if outcomes[outcome]}
    kept = [index for index, outcome in enumerate(seen["fate"]) if outcome == Outcome.KEPT]
    if options.near_duplicates is not None:
        distinct = without_near_duplicates([int(seen["hash"][i]) for i in kept], options.near_duplicates)
        if len(distinct) < len(kept):
            left_out["near-duplicates"] = len(kept) - len(distinct)
        kept = [kept[i] for i in distinct]
    if not kept:
        reasons = ", ".join(f"{number} {words}" for words, number in left_out.items())
        raise DataError(f"none of {len(seen)} samples can be used ({reasons}): look at the data set with verify")
    if options.bucket_side is None:
        return {".": kept}, left_out
    buckets = make_buckets(options.bucket_side)
    groups: dict[str, list[int]] = {}
    for index in kept:
        bucket = bucket_of(int(seen["width"][index]), int(seen["height"][index]), buckets)
        groups.setdefault(f"{bucket.width}x{bucket.height}", []).append(index)
    return dict(sorted(groups.items())), left_out


def _write(
    dataset: Dataset, encode: Encode, indices: Sequence[int], folder: Path, options: ShardOptions, stop: Cancellation
) -> None:
    """The shards of one folder that aren't there yet, and its manifest."""
    make_folder(folder)
    shards = []
    for number, start in enumerate(range(0, len(indices), options.samples_per_shard)):
        stop.check()
        some = indices[start : start + options.samples_per_shard]
        path = folder / f"{options.name}-{number:05}.tar"
        if not path.exists():
            with scratch_folder(folder) as scratch:
                written = write_shard(dataset, encode, some, scratch / path.name)
                publish(index_path(written.path), index_path(path))
                publish(written.path, path)  # last: where it is, its index is
        shards.append(Shard(path=path, samples=len(some), bytes=path.stat().st_size, sha256=file_sha256(path)))
    write_text(folder / MANIFEST, manifest_text(shards), overwrite=True)


def _digest(removals: Removals) -> str:
    return hashlib.sha256("\n".join([*sorted(removals.addresses), *sorted(removals.hashes)]).encode()).hexdigest()
