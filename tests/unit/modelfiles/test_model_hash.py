"""`Model.sha256` names the weights that were read, whatever else lies beside them."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import sfumato
from sfumato.errors import CheckpointError
from sfumato.modelfiles.conversion import convert
from sfumato.modelfiles.load_options import LoadOptions
from sfumato.modelfiles.open_model import open_model
from sfumato.models import compvis
from sfumato.models.unet import UNet
from sfumato.pipeline.model import Model, load_model
from sfumato.weights.mapper import written_entries

POCKET = Path(sfumato.__file__).parent / "assets" / "pocket"
PARTS = (
    "text_encoder/model.safetensors",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
)


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SFUMATO_HOME", str(tmp_path / "home"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(POCKET, tmp_path / "model")
    return tmp_path / "model"


def _load(path: Path, *, vae: Path | None = None, ema: bool = True, variant: str | None = None) -> Model:
    return load_model(path, LoadOptions(device="cpu", vae=vae, ema=ema, variant=variant), name="m")


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _listing(files: dict[str, Path]) -> str:
    return hashlib.sha256("".join(f"{_digest(path)}  {name}\n" for name, path in files.items()).encode()).hexdigest()


def test_a_folders_other_files_do_not_count_and_its_variant_does(folder: Path) -> None:
    plain = _listing({name: folder / name for name in PARTS})
    assert _load(folder).sha256 == plain
    half = folder / "unet" / "diffusion_pytorch_model.fp16.safetensors"
    save_file({name: tensor * 2 for name, tensor in load_file(folder / PARTS[1]).items()}, half)
    (folder / "safety_checker").mkdir()
    (folder / "safety_checker" / "model.safetensors").write_bytes(b"not read")
    assert _load(folder).sha256 == plain
    read = {PARTS[0]: folder / PARTS[0], half.relative_to(folder).as_posix(): half, PARTS[2]: folder / PARTS[2]}
    assert _load(folder, variant="fp16").sha256 == _listing(read) != plain


def test_another_autoencoder_counts_by_its_content_and_not_its_name(folder: Path, tmp_path: Path) -> None:
    own = _load(folder).sha256
    hashes = []
    for name in ("a", "b"):
        shutil.copytree(folder / "vae", tmp_path / name)
        hashes.append(_load(folder, vae=tmp_path / name).sha256)
    assert hashes[0] == hashes[1] != own
    changed = {name: tensor + 1 for name, tensor in load_file(folder / PARTS[2]).items()}
    save_file(changed, tmp_path / "b" / "diffusion_pytorch_model.safetensors")
    assert _load(folder, vae=tmp_path / "b").sha256 not in (own, hashes[0])


def test_a_single_file_has_its_own_hash_unless_its_averages_are_left(tmp_path: Path) -> None:
    path = tmp_path / "pocket.safetensors"
    convert(POCKET, path, layout="compvis")
    assert _load(path).sha256 == _load(path, ema=False).sha256 == _digest(path)
    with open_model(path) as files:
        config, metadata = files.unet.module.config, dict(files.unet.checkpoint.metadata)
    with torch.device("meta"):
        module = UNet(config)
    tensors = load_file(path)
    layouts = (compvis.unet_layout(config, ema=True), compvis.unet_layout(config))
    names = zip(*(written_entries(module, layout) for layout in layouts), strict=True)
    averages = {average.theirs: tensors[last.theirs] + 1 for average, last in names}
    both = tmp_path / "both.safetensors"
    save_file(tensors | averages, both, metadata=metadata)
    assert _load(both).sha256 == _digest(both)
    assert _load(both, ema=False).sha256 != _digest(both)


def test_a_file_that_changed_since_is_not_taken_for_the_one_that_was_read(folder: Path) -> None:
    model = _load(folder)
    (folder / PARTS[1]).unlink()
    with pytest.raises(CheckpointError, match=r"unet.*can't be read"):
        _ = model.sha256
    shutil.copy(folder / PARTS[2], folder / PARTS[1])
    with pytest.raises(CheckpointError, match="has changed since the model was loaded"):
        _ = model.sha256
