"""Pictures fetched from a list of addresses by img2dataset, a program of its own whose output is our input.

    FOLDER/00000.tar, .parquet, _stats.json    img2dataset's shard, what became of each address, and their counts
    FOLDER/00000.npy, FOLDER/manifest.json     our index, which makes the folder a set of shards; written last
    FOLDER/wanted/                             the addresses, and how they are fetched; another way is refused there
    FOLDER/download.log                        what the program said

img2dataset needs packages too old to share an environment with; it is started by its path. It leaves finished shards
alone when it is started again, but can't stand any other JSON in its folder: so the manifest waits. Addresses whose
server forbids it by `X-Robots-Tag` are not taken, unless asked for.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sfumato.data import tar_index
from sfumato.data.laion_filter import Rules, filter_tables, parquet_files
from sfumato.data.removals import Removals
from sfumato.data.samples import parse_fields
from sfumato.data.shards import MANIFEST, Shard, index_path, manifest_text, open_shards
from sfumato.data.tables import Tables
from sfumato.errors import DataError, InvalidRequest, ModelNotFound, OutputError
from sfumato.files import atomic_write, file_sha256, locked, make_folder, remove_leftovers, write_text

OPT_OUTS = ("noai", "noimageai", "noindex", "noimageindex")
"""Words of `X-Robots-Tag` by which a server says that its pictures are not to be trained on, or not to be listed."""

ERRORS: Mapping[str, str] = {
    "opted out": r"X-Robots-Tag",
    "gone": r"HTTP Error (404|410)",
    "forbidden": r"HTTP Error (401|402|403|451)",
    "too many requests": r"HTTP Error 429",
    "endless redirects": r"redirect",
    "server error": r"HTTP Error 5",
    "other answer": r"HTTP Error",
    "timeout": r"timed out|timeout",
    "no such host": r"not known|getaddrinfo|nodename|no address|resolution",
    "certificate": r"certificate|SSL|TLS",
    "connection": r"refused|reset|unreachable|closed|aborted|EOF|IncompleteRead|Errno",
    "wrong size": r"too small|too large",
    "no picture": r"decod|identify|Image|buf is not",
    "changed": r"hash mismatch",
    "no address": r"url type|URL can't|unknown",
}
"""Kinds of failure by what img2dataset says of them; the first that fits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DownloadOptions:
    """What img2dataset is told. Pictures larger than `size` are scaled so that their shorter side has it."""

    size: int = 512
    min_side: int = 0
    max_pixels: int = 64_000_000
    timeout: int = 10
    retries: int = 1
    processes: int = 1
    threads: int = 32
    samples_per_shard: int = 10_000
    quality: int = 95
    url_column: str = "URL"
    caption_column: str = "TEXT"
    user_agent: str = "sfumato"
    honour_opt_outs: bool = True
    distributor: str = "multiprocessing"

    def arguments(self) -> list[str]:
        """The options as img2dataset's command line has them."""
        values: dict[str, Any] = {
            "input_format": "parquet",
            "output_format": "webdataset",
            "url_col": self.url_column,
            "caption_col": self.caption_column,
            "image_size": self.size,
            "resize_mode": "keep_ratio",
            "resize_only_if_bigger": True,
            "encode_format": "jpg",
            "encode_quality": self.quality,
            "min_image_size": self.min_side,
            "max_image_area": self.max_pixels,
            "timeout": self.timeout,
            "retries": self.retries,
            "processes_count": self.processes,
            "thread_count": self.threads,
            "number_sample_per_shard": self.samples_per_shard,
            "compute_hash": "sha256",
            "extract_exif": False,
            "enable_wandb": False,
            "incremental_mode": "incremental",
            "user_agent_token": self.user_agent,
            "distributor": self.distributor,
            "disallowed_header_directives": json.dumps(list(OPT_OUTS) if self.honour_opt_outs else []),
        }
        return [f"--{name}={value}" for name, value in values.items()]


@dataclass(frozen=True, slots=True, kw_only=True)
class DownloadReport:
    """What downloading came to: `addresses` were tried and `pictures` had; `errors` counts the others by kind,
    `messages` by what was said. `shards` have at least one picture. `unwanted` pictures have a hash on the list of
    removals: `shard` drops them."""

    addresses: int
    pictures: int
    shards: int
    unwanted: int
    errors: Mapping[str, int]
    messages: Mapping[str, int]


def download(
    tables: Sequence[Path],
    folder: Path,
    downloader: Path,
    options: DownloadOptions | None = None,
    *,
    removals: Path | None = None,
    unwanted: Removals | None = None,
) -> DownloadReport:
    """Fetch the pictures that parquet files list, into shards with an index. Started again, it goes on.

    `removals` is a file of addresses that aren't to be fetched, `unwanted` what is in it. `ModelNotFound`, `DataError`
    and `OutputError` say what is wrong with the program, with what it did, and with the folder; `InvalidRequest` that
    the folder was filled in another way.
    """
    options = options or DownloadOptions()
    if not downloader.is_file() or not os.access(downloader, os.X_OK):
        raise ModelNotFound(
            f"{downloader} is no program: install img2dataset in an environment of its own, and give it"
        )
    make_folder(folder)
    with locked(folder / ".lock"):
        remove_leftovers(folder)
        wanted = folder / "wanted"
        make_folder(wanted)
        _claim(
            wanted / "download.json",
            {
                "tables": [path.name for path in tables],
                "options": dataclasses.asdict(options),
                "removals": file_sha256(removals) if removals else None,
            },
        )
        filter_tables(tables, wanted, Rules(), columns={"url": options.url_column}, removals=removals)
        if not (folder / MANIFEST).exists():
            _run([str(downloader), f"--url_list={wanted}", f"--output_folder={folder}", *options.arguments()], folder)
        counts, messages = _tally(folder)
        asked = _rows(parquet_files([wanted]))
        if counts["count"] < asked:
            raise DataError(
                f"{downloader.name} tried {counts['count']} of {asked} addresses: see {folder / 'download.log'}, "
                "and run the same again to go on"
            )
        shards = _index(folder)
    return DownloadReport(
        addresses=counts["count"],
        pictures=counts["successes"],
        shards=shards,
        unwanted=_unwanted(folder, unwanted) if shards and unwanted else 0,
        errors=_kinds(messages),
        messages=messages,
    )


def _claim(path: Path, about: Mapping[str, Any]) -> None:
    """Note how the folder is filled, or find that it is filled that way."""
    if not path.exists():
        write_text(path, json.dumps(about, indent=1) + "\n")
        return
    before = parse_fields(path.read_bytes(), str(path))
    for name, value in about.items():
        if before.get(name) != value:
            raise InvalidRequest(f"{path.parent.parent} was begun with other {name} (see {path}): give another folder")


def _run(command: Sequence[str], folder: Path) -> None:
    log = folder / "download.log"
    environment = {**os.environ, "NO_ALBUMENTATIONS_UPDATE": "1"}  # one of its packages asks the network for news
    try:
        with log.open("ab") as file:
            code = subprocess.run(
                command, stdout=file, stderr=subprocess.STDOUT, env=environment, check=False
            ).returncode
    except OSError as error:
        raise OutputError(f"{command[0]} could not be run, or {log} not be written ({error.strerror})") from error
    if code:
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        raise DataError(f"{command[0]} ended with code {code} ({lines[-1][:200] if lines else 'silent'}): see {log}")


def _tally(folder: Path) -> tuple[Counter[str], dict[str, int]]:
    """The sums of all shards' counts, and of their messages, the most frequent first."""
    counts: Counter[str] = Counter(count=0, successes=0)
    messages: Counter[str] = Counter()
    for path in sorted(folder.glob("*_stats.json")):
        stats = parse_fields(path.read_bytes(), str(path))
        said = stats.get("status_dict")
        numbers = {name: stats.get(name) for name in ("count", "successes")}
        if not isinstance(said, dict) or not all(isinstance(n, int) for n in [*numbers.values(), *said.values()]):
            raise DataError(f"{path} is not as img2dataset writes it: delete this shard's files, and run again")
        counts.update({name: int(n or 0) for name, n in numbers.items()})
        messages.update({" ".join(name.split()): n for name, n in said.items() if name != "success"})
    return counts, dict(messages.most_common())


def _kinds(messages: Mapping[str, int]) -> dict[str, int]:
    found: Counter[str] = Counter()
    for message, number in messages.items():
        kind = next((kind for kind, pattern in ERRORS.items() if re.search(pattern, message, re.IGNORECASE)), "other")
        found[kind] += number
    return dict(found.most_common())


def _index(folder: Path) -> int:
    """Give every shard with a picture an index, and the folder its manifest. Returns how many there are."""
    shards = []
    for path in sorted(folder.glob("*.tar")):
        if not _has_members(path):
            continue
        rows = tar_index.scan(path)
        with atomic_write(index_path(path), overwrite=True) as file:
            np.save(file, rows, allow_pickle=False)
        shards.append(Shard(path=path, samples=len(rows), bytes=path.stat().st_size, sha256=file_sha256(path)))
    if shards:
        write_text(folder / MANIFEST, manifest_text(shards), overwrite=True)
    return len(shards)


def _has_members(path: Path) -> bool:
    """Whether a tar holds anything: where every address failed there are only the zeros at its end."""
    with path.open("rb") as file:
        return any(file.read(512))


def _unwanted(folder: Path, removals: Removals) -> int:
    shards = open_shards(folder)
    return sum(removals.name(shards.record(index)) for index in range(len(shards)))


def _rows(paths: Sequence[Path]) -> int:
    tables = Tables(memory=512)
    try:
        return sum(int(tables.one(path, ["count(*)"])[0]) for path in paths)
    finally:
        tables.close()
