"""Models from the Hugging Face Hub: only the files a v1 pipeline needs, and errors that say what to do."""

from __future__ import annotations

import concurrent.futures
import errno
import json
import re
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sfumato.errors import HubError, InvalidRequest, OutputError, SfumatoError
from sfumato.modelfiles.hash_cache import file_hash
from sfumato.progress import OnProgress, Progress, ignore

COMPONENTS = ("feature_extractor", "safety_checker", "scheduler", "text_encoder", "tokenizer", "unet", "vae")
INDEX = "model_index.json"

_STEMS = "(?:diffusion_pytorch_model|pytorch_model|model)"
_SINGLE_FILE = re.compile(r"[^/]+\.(?:safetensors|ckpt)")
_HUB_ID = re.compile(r"[A-Za-z0-9_][\w.-]{0,95}/[A-Za-z0-9_][\w.-]{0,95}", re.ASCII)
_POLL_SECONDS = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A downloaded model: `path` is a diffusers folder or a single weight file, of commit `revision`."""

    hub_id: str
    revision: str
    path: Path


def _client() -> Any:
    """Import the Hub's client, only when it is needed: it takes longer to import than we do."""
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.utils
    except ImportError as error:
        raise HubError("the Hub needs the package huggingface_hub: pip install huggingface_hub") from error
    return huggingface_hub


def is_hub_id(text: str) -> bool:
    """Whether `text` has the form `owner/name` of a Hub id (it need not exist)."""
    return bool(_HUB_ID.fullmatch(text)) and ".." not in text and "--" not in text


def wanted_files(hub_id: str, names: Iterable[str], *, variant: str | None = None) -> list[str]:
    """Which files of a repository make a pipeline: configurations, tokenizer, one set of weights for each component.

    safetensors of the variant, else plain safetensors, else (only then) `.bin`; never code. A repository without
    `model_index.json` must have exactly one weight file at its top. The first name is one at the top, the last the
    VAE's weights. Raises `HubError`.
    """
    present = sorted(set(names))
    if INDEX not in present:
        singles = [name for name in present if _SINGLE_FILE.fullmatch(name)]
        if len(singles) != 1:
            found = ", ".join(singles[:5]) or "no weight file"
            raise HubError(
                f"{hub_id}: not a v1 pipeline: no {INDEX}, and at its top {found}; "
                "download the right file yourself and name it: sfumato models add FILE"
            )
        return singles
    wanted = [name for name in present if name == INDEX or re.fullmatch(r"(?:README\.md|LICENSE(?:\.\w+)?)", name)]
    for component in COMPONENTS:
        files = [name for name in present if re.fullmatch(rf"{component}/[^/]+", name)]
        wanted += [name for name in files if re.search(r"\.(?:json|txt)$", name) and ".index." not in name]
        wanted += _weights(component, files, variant)
    return wanted


def _weights(component: str, files: list[str], variant: str | None) -> list[str]:
    for kind in ([rf"\.{re.escape(variant)}"] if variant else []) + [""]:
        shard = rf"(?:{kind}|{kind}-\d+-of-\d+|-\d+-of-\d+{kind})"
        pattern = rf"{component}/{_STEMS}(?:{shard}\.safetensors|\.safetensors\.index{kind}\.json)"
        if chosen := [name for name in files if re.fullmatch(pattern, name)]:
            return chosen
    pickled = rf"{component}/{_STEMS}(?:-\d+-of-\d+)?\.bin(?:\.index\.json)?"
    return [name for name in files if re.fullmatch(pickled, name)]


def download(
    hub_id: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: Path | None = None,
    variant: str | None = None,
    on_progress: OnProgress = ignore,
) -> Snapshot:
    """Fetch what a pipeline needs into the Hub's own cache (shared with other programs); what is there is not fetched.

    `token` None is what `hf auth login` or `HF_TOKEN` left. Progress has the stage "download" and counts bytes. Raises
    `HubError` with what to do (also for a file that isn't what the Hub names), `InvalidRequest` for a malformed id,
    `OutputError` when the disk is full.
    """
    if not is_hub_id(hub_id):
        raise InvalidRequest(f"{hub_id!r} is not a Hub id: it must look like owner/name")
    client = _client()
    constants = client.constants
    if constants.HF_HUB_OFFLINE:
        return cached(hub_id, revision=revision, cache_dir=cache_dir)
    bars, log = client.utils, client.utils.logging
    silent, verbosity = bars.are_progress_bars_disabled(), log.get_verbosity()
    bars.disable_progress_bars()
    log.set_verbosity(log.ERROR)  # what goes wrong is told in one line, and not of each try
    try:
        info = client.HfApi(token=token).model_info(hub_id, revision=revision, files_metadata=True)
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
        wanted = wanted_files(hub_id, sizes, variant=variant)

        hashes = {file.rfilename: file.lfs.sha256 for file in info.siblings or [] if file.lfs}

        def fetch_file(name: str, commit: str | None) -> Path:
            path = Path(client.hf_hub_download(hub_id, name, revision=commit, token=token, cache_dir=cache_dir))
            _check_hash(hub_id, name, path, hashes.get(name))
            return path

        def fetch() -> Path:
            folder = fetch_file(wanted[0], revision).parent
            for name in wanted[1:]:  # of the same commit, should the branch move meanwhile
                fetch_file(name, folder.name)
            return folder

        blobs = Path(cache_dir or constants.HF_HUB_CACHE) / f"models--{hub_id.replace('/', '--')}" / "blobs"
        folder = _watch(fetch, blobs, sum(sizes[name] for name in wanted), on_progress)
    except SfumatoError:
        raise
    except Exception as error:
        raise explained(error, hub_id, revision) from error
    finally:
        if not silent:
            bars.enable_progress_bars()
        log.set_verbosity(verbosity)
    return Snapshot(hub_id=hub_id, revision=folder.name, path=_entry_point(hub_id, folder))


def _check_hash(hub_id: str, name: str, path: Path, expected: str | None) -> None:
    """Raise `HubError` for a file whose bytes aren't those that the Hub names, and delete it: the next pull fetches it
    anew."""
    if expected is None or file_hash(path) == expected:
        return
    while path.is_symlink():  # the snapshot's name for it, then what the cache shares
        target = path.parent / path.readlink()
        path.unlink()
        path = target
    path.unlink(missing_ok=True)
    raise HubError(
        f"{hub_id}: {name} came with other bytes than the Hub names (SHA-256 {expected[:12]}…), and was deleted: "
        f"fetch it again with sfumato models pull {hub_id}"
    )


def cached(hub_id: str, *, revision: str | None = None, cache_dir: Path | None = None) -> Snapshot:
    """Find what an earlier download (ours or another program's) left in the Hub's cache, else `HubError`."""
    client = _client()
    try:
        found = client.snapshot_download(
            hub_id, revision=revision, cache_dir=cache_dir, local_files_only=True, allow_patterns=[INDEX]
        )
    except Exception as error:
        raise explained(error, hub_id, revision) from error
    return Snapshot(hub_id=hub_id, revision=Path(found).name, path=_entry_point(hub_id, Path(found)))


def _entry_point(hub_id: str, folder: Path) -> Path:
    if (folder / INDEX).is_file():
        weights = re.compile(_STEMS + r".*\.(?:safetensors|bin)")
        for component in ("text_encoder", "unet", "vae"):  # the VAE's are fetched last
            if not any(weights.fullmatch(file.name) for file in folder.glob(f"{component}/*")):
                raise HubError(
                    f"{hub_id}: its download in {folder} lacks the {component}: sfumato models pull {hub_id}"
                )
        return folder
    singles = sorted(file for file in folder.iterdir() if _SINGLE_FILE.fullmatch(file.name))
    if len(singles) != 1:
        raise HubError(f"{hub_id}: its download in {folder} is incomplete: sfumato models pull {hub_id}")
    return singles[0]


def _watch(fetch: Callable[[], Path], blobs: Path, total: int, on_progress: OnProgress) -> Path:
    """Run `fetch` in a thread and report how much the cache has grown, which needs nothing of the Hub's client.

    The thread is a daemon: Ctrl-C, or an `on_progress` that raises, doesn't wait for the rest of the download.
    """
    before = _size(blobs)
    future: concurrent.futures.Future[Path] = concurrent.futures.Future()

    def work() -> None:
        try:
            future.set_result(fetch())
        except Exception as error:
            future.set_exception(error)

    threading.Thread(target=work, name="sfumato-download", daemon=True).start()
    while not future.done():
        on_progress(Progress(stage="download", step=min(max(_size(blobs) - before, 0), total), steps=total))
        concurrent.futures.wait([future], timeout=_POLL_SECONDS)
    folder = future.result()
    on_progress(Progress(stage="download", step=total, steps=total))
    return folder


def _size(folder: Path) -> int:
    total = 0
    for file in folder.glob("*"):
        try:
            total += file.stat().st_size
        except FileNotFoundError:  # renamed to its final name between listing and looking
            continue
    return total


def explained(error: Exception, hub_id: str, revision: str | None) -> SfumatoError:
    """Give the one-line error for what the Hub's client raised."""
    from huggingface_hub import errors

    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
        return OutputError(
            f"{hub_id}: the Hub's cache can't be written: {error.strerror}; set HF_HOME to another place"
        )
    page = f"https://huggingface.co/{hub_id}"
    login = "log in with `hf auth login` or set HF_TOKEN"
    offline = "not on this machine, and the Hub can't be asked now: pull it once with a network, without HF_HUB_OFFLINE"
    reasons: Mapping[type[Exception], str] = {
        errors.GatedRepoError: f"gated: accept its licence at {page}, then {login}",
        errors.RevisionNotFoundError: f"has no revision {revision!r}; see {page}/tree/main",
        errors.RepositoryNotFoundError: f"no such repository at {page}; if it is private, {login}",
        errors.LocalTokenNotFoundError: f"needs a token: {login}",
        errors.OfflineModeIsEnabled: offline,
        errors.LocalEntryNotFoundError: offline,
        errors.HFValidationError: f"not a valid Hub id, or not a valid revision ({revision!r})",
    }
    for kind, reason in reasons.items():
        if isinstance(error, kind):
            return HubError(f"{hub_id}: {reason}")
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is not None:
        return HubError(f"{hub_id}: {_STATUSES.get(status, f'the Hub answered with status {status}: try again later')}")
    name = type(error).__name__
    if name in _BROKEN_OFF or "Consistency check failed" in str(error):
        return HubError(f"{hub_id}: the download broke off before its end: try again, what is there is kept")
    if isinstance(error, (json.JSONDecodeError, errors.FileMetadataError)):
        return HubError(
            f"{hub_id}: what answers is not the Hub: log in to this network if it has a page for that, or check "
            "proxy and HF_ENDPOINT"
        )
    if type(error).__module__.partition(".")[0] in _NETWORK_PACKAGES or isinstance(error, OSError):
        return HubError(f"{hub_id}: the Hub can't be reached ({name}): check the network, proxy and HF_ENDPOINT")
    return HubError(f"{hub_id}: the Hub's client failed: {name}: {' '.join(str(error).split())[:200]}")


_STATUSES = {
    401: "the token is not valid: log in again with `hf auth login`, or correct HF_TOKEN",
    403: "the token does not allow it: use one that may read this repository",
    429: "too many requests: wait a few minutes, or log in with `hf auth login`",
}
_BROKEN_OFF = frozenset({"RemoteProtocolError", "IncompleteRead", "ChunkedEncodingError"})
_NETWORK_PACKAGES = frozenset({"httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3"})


def forget(hub_id: str, revision: str, *, cache_dir: Path | None = None) -> int:
    """Delete one downloaded revision from the Hub's cache; returns the bytes freed."""
    cache = _client().scan_cache_dir(cache_dir)
    if not any(
        commit.commit_hash == revision for repo in cache.repos if repo.repo_id == hub_id for commit in repo.revisions
    ):
        return 0
    plan = cache.delete_revisions(revision)
    plan.execute()
    return int(plan.expected_freed_size)
