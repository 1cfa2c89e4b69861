"""The model library: names to files, never names into paths."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sfumato.errors import CheckpointError, HubError, InvalidConfig, InvalidRequest, ModelNotFound
from sfumato.modelfiles import hash_cache
from sfumato.modelfiles import library_index as registry
from sfumato.modelfiles import model_library as store


@pytest.fixture(autouse=True)
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty library, an empty Hub cache, and no network."""
    from huggingface_hub import constants

    monkeypatch.setenv("SFUMATO_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("SFUMATO_MODEL_PATH", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "home"


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "files" / "fine tune.safetensors"
    path.parent.mkdir()
    save_file({"a": torch.ones(10)}, path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "folders" / "mine"
    (path / "unet").mkdir(parents=True)
    (path / "model_index.json").write_text("{}")
    save_file({"a": torch.ones(3)}, path / "unet" / "diffusion_pytorch_model.safetensors")
    save_file({"b": torch.ones(4)}, path / "vae.safetensors")
    return path


def test_the_embedded_model_is_always_there() -> None:
    location = store.resolve("pocket")
    assert (location.kind, location.source) == ("folder", "embedded")
    assert (location.path / "model_index.json").is_file()
    assert store.list_models() == [location]


def test_add_verify_and_remove(weights: Path) -> None:
    added = store.add(weights)
    assert (added.name, added.kind, added.path, added.source) == ("fine tune", "file", weights, "library")
    assert store.resolve("fine tune") == store.resolve("fine tune", installed_only=True) == added
    assert [check.ok for check in store.verify("fine tune")] == [True]

    save_file({"a": torch.zeros(10)}, weights)
    (check,) = store.verify("fine tune")
    assert (check.file, check.ok) == ("fine tune.safetensors", False)
    assert check.found == hashlib.sha256(weights.read_bytes()).hexdigest()

    weights.rename(weights.with_name("elsewhere.safetensors"))
    assert store.verify("fine tune")[0].found is None
    with pytest.raises(ModelNotFound, match="now gone"):
        store.resolve("fine tune")
    assert store.remove("fine tune") == 0
    assert weights.with_name("elsewhere.safetensors").exists()
    with pytest.raises(ModelNotFound, match="no model 'fine tune'"):
        store.remove("fine tune")


def test_a_folder_is_hashed_file_by_file(folder: Path) -> None:
    store.add(folder, name="my model")
    assert sorted(check.file for check in store.verify("my model")) == [
        "unet/diffusion_pytorch_model.safetensors",
        "vae.safetensors",
    ]
    listing = "".join(
        f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n"
        for name in ("unet/diffusion_pytorch_model.safetensors", "vae.safetensors")
    )
    assert hash_cache.weights_hash(folder) == hashlib.sha256(listing.encode()).hexdigest()


def test_names_that_are_taken(weights: Path, folder: Path) -> None:
    store.add(weights, name="mine")
    with pytest.raises(InvalidRequest, match="'mine' is taken"):
        store.add(folder)
    assert store.add(folder, overwrite=True).path == folder
    with pytest.raises(InvalidRequest, match="'pocket' is taken"):
        store.add(weights, name="pocket", overwrite=True)
    with pytest.raises(InvalidRequest, match="not added or pulled"):
        store.remove("pocket")
    with pytest.raises(InvalidRequest, match=r"not downloaded by sfumato: delete .* yourself"):
        store.remove("mine", delete_files=True)
    assert folder.exists()


@pytest.mark.parametrize("name", ["../evil", "a/b", "", ".hidden", "con", "a\0b", "x" * 300])
def test_names_that_could_be_paths_are_refused(name: str, weights: Path, library: Path) -> None:
    with pytest.raises(InvalidRequest, match="model name"):
        store.add(weights, name=name)
    assert not (library / "models.json").exists()


def test_paths_are_found_unless_only_names_count(weights: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    assert store.resolve(str(weights)).path == store.resolve(weights).path == weights
    assert store.resolve("./mine").path == store.resolve(Path("mine")).path == folder
    for name in (str(weights), str(folder), "./mine", "mine", "../folders/mine", "~/x.safetensors", "/etc/passwd"):
        with pytest.raises(ModelNotFound, match="no model"):
            store.resolve(name, installed_only=True)


@pytest.mark.parametrize("name", ["a\0b.ckpt", "x" * 5000 + ".ckpt", "no/such/model/here", "./gone"])
def test_what_is_not_there_is_one_line(name: str) -> None:
    with pytest.raises((ModelNotFound, CheckpointError)) as caught:
        store.resolve(name)
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"not a model folder: it has no model_index\.json"):
        store.resolve(tmp_path)


def test_unknown_names_bring_close_ones(weights: Path) -> None:
    store.add(weights, name="watercolour")
    with pytest.raises(ModelNotFound, match="no model 'watercolor', did you mean watercolour"):
        store.resolve("watercolor")
    with pytest.raises(ModelNotFound, match="did you mean pocket"):
        store.resolve("pokcet")
    with pytest.raises(ModelNotFound, match="sfumato models list"):
        store.resolve("zzzzzzzz")


def test_without_the_hubs_package_local_models_work(monkeypatch: pytest.MonkeyPatch, weights: Path) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert store.resolve("pocket").source == "embedded"
    assert store.resolve(weights).path == weights
    with pytest.raises(HubError, match="pip install huggingface_hub"):
        store.resolve("owner/name")


@pytest.mark.parametrize("alias", store.ALIASES)
def test_an_alias_that_was_not_pulled_says_how(alias: str) -> None:
    with pytest.raises(ModelNotFound, match=f"sfumato models pull {alias}"):
        store.resolve(alias)


def test_folders_of_other_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = tmp_path / "a1111" / "models" / "Stable-diffusion", tmp_path / "comfyui" / "checkpoints"
    for path in (
        first / "anime" / "deep.safetensors",
        first / "both.ckpt",
        second / "both.safetensors",
        second / "notes.txt",
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    monkeypatch.setenv("SFUMATO_MODEL_PATH", os.pathsep.join([str(first), str(second), str(tmp_path / "missing"), ""]))
    names = {location.name: location.path for location in store.list_models()}
    assert names.keys() == {"pocket", "deep", "both"}
    assert names["both"] == first / "both.ckpt"
    location = store.resolve("deep", installed_only=True)
    assert (location.kind, location.source, location.path) == (
        "file",
        "search path",
        first / "anime" / "deep.safetensors",
    )
    with pytest.raises(InvalidRequest, match="no hashes of 'deep' were noted"):
        store.verify("deep")
    monkeypatch.setattr(store, "MAX_SEARCHED", 2)
    with pytest.raises(InvalidRequest, match="more than 2 files"):
        store.list_models()
    assert store.resolve("pocket").source == "embedded"


def test_the_hash_is_remembered_until_the_file_changes(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = hash_cache.weights_hash(weights)
    assert first == hashlib.sha256(weights.read_bytes()).hexdigest()
    read: list[Path] = []
    really = hash_cache._sha256
    monkeypatch.setattr(hash_cache, "_sha256", lambda path: read.append(path) or really(path))
    assert hash_cache.weights_hash(weights) == first
    assert read == []
    save_file({"a": torch.zeros(10)}, weights)
    assert hash_cache.weights_hash(weights) == hashlib.sha256(weights.read_bytes()).hexdigest() != first
    assert read == [weights]


def test_a_hash_needs_no_writable_library(weights: Path, library: Path) -> None:
    library.write_text("a file where the folder should be")
    assert hash_cache.weights_hash(weights) == hashlib.sha256(weights.read_bytes()).hexdigest()


def test_a_full_disk_costs_the_hashes_and_nothing_else(
    weights: Path, library: Path, caplog: pytest.LogCaptureFixture
) -> None:
    library.mkdir()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    hash_cache._warn_forgetful.cache_clear()
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))  # not one byte fits into a file
    try:
        found = [hash_cache.weights_hash(weights) for _ in range(2)]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert found == [hashlib.sha256(weights.read_bytes()).hexdigest()] * 2
    (record,) = caplog.records
    assert "hashes.json: could not be written" in record.getMessage() and "\n" not in record.getMessage()


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "{",
        "[" * 10_000,
        '{"version": NaN}',
        '{"a": "' + "x" * 2**23 + '"}',
        '{"version": 9, "models": {}}',
        '{"version": 1}',
        '{"version": 1, "models": {"../x": {"path": "/"}}}',
    ],
)
def test_a_damaged_list_is_named(content: str, library: Path) -> None:
    library.mkdir()
    (library / "models.json").write_text(content)
    with pytest.raises(InvalidConfig, match=r"models\.json.*move it away"):
        store.list_models()


def test_what_is_written_can_be_read_by_hand(weights: Path, library: Path) -> None:
    store.add(weights, name="mine")
    assert json.loads((library / "models.json").read_text()) == {
        "version": 1,
        "models": {"mine": {"path": str(weights), "files": {weights.name: hash_cache.weights_hash(weights)}}},
    }


def test_where_the_library_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("SFUMATO_HOME")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "xdg"))
    assert registry.data_dir() == tmp_path / "xdg" / "sfumato"
    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert registry.data_dir() == tmp_path / ".local" / "share" / "sfumato"


def test_threads_that_add_models_at_once_lose_none(weights: Path) -> None:
    names = [f"model-{i}" for i in range(16)]
    together = threading.Barrier(len(names))

    def add(name: str) -> None:
        together.wait()
        store.add(weights, name=name)

    with ThreadPoolExecutor(len(names)) as pool:
        list(pool.map(add, names))
    assert set(registry.read_records()) == set(names)


def test_processes_that_change_the_list_at_once_lose_nothing(weights: Path) -> None:
    script = """
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from sfumato.modelfiles.library_index import Record, change_records
sys.stdin.readline()
for i in range(20):
    name = f"{sys.argv[1]}-{i}"
    change_records(lambda records: records.update({name: Record(name=name, path="x")}))
"""
    command = [sys.executable, "-c", script]
    started = [subprocess.Popen([*command, str(i)], stdin=subprocess.PIPE, text=True) for i in range(3)]
    for process in started:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    for process in started:
        process.communicate()
    assert [process.returncode for process in started] == [0, 0, 0]
    assert set(registry.read_records()) == {f"{i}-{j}" for i in range(3) for j in range(20)}


def test_of_two_models_added_under_one_name_at_once_one_is_refused(
    weights: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hash_files = hash_cache.hash_files

    def slow(path: Path) -> dict[str, str]:
        monkeypatch.setattr(store, "hash_files", hash_files)
        store.add(folder, name="mine")  # while the other is still hashed
        return hash_files(path)

    monkeypatch.setattr(store, "hash_files", slow)
    with pytest.raises(InvalidRequest, match="'mine' is taken"):
        store.add(weights, name="mine")
    assert store.resolve("mine").path == folder


def test_a_published_name_that_is_not_here_is_told_how_to_get() -> None:
    for ask in (store.verify, store.remove, lambda name: store.resolve(name, installed_only=True)):
        with pytest.raises(ModelNotFound, match=r"v1-4 is CompVis/.* not on this machine: get it with") as caught:
            ask("v1-4")
        assert "did you mean" not in str(caught.value)


def test_the_embedded_model_comes_with_the_package() -> None:
    assert store.verify("pocket") == []
