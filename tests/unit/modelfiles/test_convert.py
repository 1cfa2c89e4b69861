"""Between layouts and back: every tensor bit for bit, and nothing written that isn't whole."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import sfumato
from sfumato.errors import CheckpointError, InvalidConfig, InvalidRequest, OutputError
from sfumato.modelfiles.conversion import convert
from sfumato.modelfiles.open_model import open_model
from sfumato.models import compvis
from sfumato.models.unet import UNet
from sfumato.models.unet_config import UNetConfig
from sfumato.pipeline.request import Request
from sfumato.weights.mapper import written_entries

POCKET = Path(sfumato.__file__).parent / "assets" / "pocket"
WEIGHTS = ("unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model")


@pytest.fixture(scope="module")
def single_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("single") / "pocket.safetensors"
    convert(POCKET, path, layout="compvis")
    return path


def test_folder_to_file_and_back_is_lossless(single_file: Path, tmp_path: Path) -> None:
    convert(single_file, tmp_path / "back", layout="diffusers")
    for name in WEIGHTS:
        before, after = (load_file(root / f"{name}.safetensors") for root in (POCKET, tmp_path / "back"))
        assert before.keys() == after.keys()
        for key, tensor in before.items():
            assert after[key].dtype == tensor.dtype
            assert torch.equal(after[key], tensor)
    with open_model(POCKET) as original, open_model(tmp_path / "back") as back:
        assert back.tokenizer == original.tokenizer
        assert back.scheduler == original.scheduler
        for name, part in original.parts.items():
            assert back.parts[name].module.config == part.module.config


def test_diffusers_and_transformers_load_the_folder_we_write(single_file: Path, tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline

    convert(single_file, tmp_path / "back", layout="diffusers")
    ours = StableDiffusionPipeline.from_pretrained(tmp_path / "back")
    theirs = StableDiffusionPipeline.from_pretrained(POCKET)
    for part in ("unet", "vae", "text_encoder"):
        expected = getattr(theirs, part).state_dict()
        for name, tensor in getattr(ours, part).state_dict().items():
            assert torch.equal(tensor, expected[name]), name


def test_dtype_is_converted(tmp_path: Path) -> None:
    convert(POCKET, tmp_path / "wide", layout="diffusers", dtype="float32")
    narrow = load_file(POCKET / "vae" / "diffusion_pytorch_model.safetensors")
    wide = load_file(tmp_path / "wide" / "vae" / "diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in wide.values()} == {torch.float32}
    assert all(torch.equal(wide[name], tensor.float()) for name, tensor in narrow.items())


def test_moving_average_is_taken_unless_told_otherwise(single_file: Path, tmp_path: Path) -> None:
    tensors = load_file(single_file)
    with open_model(single_file) as files:
        config = files.unet.module.config
        metadata = dict(files.unet.checkpoint.metadata)
    with torch.device("meta"):
        module = UNet(config)
    names = zip(
        written_entries(module, compvis.unet_layout(config, ema=True)),
        written_entries(module, compvis.unet_layout(config)),
        strict=True,
    )
    averages = {average.theirs: tensors[plain.theirs] + 1 for average, plain in names}
    counters = {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(7)}
    save_file(tensors | averages | counters, tmp_path / "ema.safetensors", metadata=metadata)
    for ema, added in ((True, 1), (False, 0)):
        convert(tmp_path / "ema.safetensors", tmp_path / f"{ema}.safetensors", layout="compvis", ema=ema)
        written = load_file(tmp_path / f"{ema}.safetensors")
        assert written.keys() == tensors.keys()
        name = "model.diffusion_model.out.2.weight"
        assert torch.equal(written[name], tensors[name] + added)


def test_ckpt_of_a_v1_shape_needs_no_description(tmp_path: Path) -> None:
    """A file as the original program writes it, small: channels that 32 groups divide, CLIP's vocabulary."""
    config = UNetConfig(block_channels=(32, 32), attention=(True, False), heads=(8, 8), depth=(1, 1), context_dim=64)
    folder = tmp_path / "model"
    _write_tiny_v1(folder, config)
    convert(folder, tmp_path / "model.ckpt", layout="compvis")
    convert(tmp_path / "model.ckpt", tmp_path / "back", layout="diffusers")
    for name in WEIGHTS:
        before, after = (load_file(root / f"{name}.safetensors") for root in (folder, tmp_path / "back"))
        bare = {
            key.removeprefix("text_model."): tensor for key, tensor in after.items()
        }  # transformers 5 leaves it out
        assert all(torch.equal(bare[key], tensor) for key, tensor in before.items())
    state = torch.load(tmp_path / "model.ckpt", weights_only=True)["state_dict"]
    assert "model.diffusion_model.input_blocks.0.0.weight" in state


def _write_tiny_v1(folder: Path, config: UNetConfig) -> None:
    from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    from sfumato.modelfiles.open_model import V1

    text = CLIPTextConfig(hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=1)
    published = {k: v for k, v in config.to_published().items() if not k.startswith("_")}
    levels = ["DownEncoderBlock2D"] * 2
    pipeline = StableDiffusionPipeline(
        unet=UNet2DConditionModel(**published),
        vae=AutoencoderKL(
            block_out_channels=(32, 32),
            layers_per_block=1,
            latent_channels=4,
            down_block_types=levels,
            up_block_types=["UpDecoderBlock2D"] * 2,
        ),
        text_encoder=CLIPTextModel(text),
        tokenizer=CLIPTokenizer.from_pretrained(V1 / "tokenizer"),
        scheduler=PNDMScheduler.from_pretrained(V1 / "scheduler"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    # exactly what the published model has, not what this version of diffusers makes of it
    for part in ("tokenizer", "scheduler"):
        for file in (folder / part).iterdir():
            file.unlink()
        for file in (V1 / part).iterdir():
            (folder / part / file.name).write_bytes(file.read_bytes())


def test_another_autoencoder_takes_the_models_place(single_file: Path, tmp_path: Path) -> None:
    tensors = load_file(POCKET / "vae" / "diffusion_pytorch_model.safetensors")
    changed = {name: tensor + 1 for name, tensor in tensors.items()}
    (tmp_path / "vae").mkdir()
    save_file(changed, tmp_path / "vae" / "diffusion_pytorch_model.safetensors")
    (tmp_path / "vae" / "config.json").write_bytes((POCKET / "vae" / "config.json").read_bytes())
    convert(single_file, tmp_path / "out", layout="diffusers", vae=tmp_path / "vae")
    written = load_file(tmp_path / "out" / "vae" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(written[name], tensor) for name, tensor in changed.items())


def test_refusals_leave_nothing_behind(single_file: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"must end in \.safetensors or \.ckpt"):
        convert(POCKET, tmp_path / "pocket.bin", layout="compvis")
    with pytest.raises(InvalidRequest, match=r"a \.ckpt can't hold what differs"):
        convert(POCKET, tmp_path / "pocket.ckpt", layout="compvis")
    with pytest.raises(InvalidRequest, match="dtype 'int4' is unknown"):
        convert(POCKET, tmp_path / "x", layout="diffusers", dtype="int4")
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match="not empty"):
        convert(POCKET, tmp_path / "there", layout="diffusers")
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(single_file.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match=r"damaged\.safetensors"):
        convert(damaged, tmp_path / "y", layout="diffusers")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["damaged.safetensors", "there"]


def test_a_tokenizer_that_is_v1s_is_not_repeated_in_the_file(tmp_path: Path) -> None:
    """transformers 5 writes v1's tokenizer as one `tokenizer.json`: the same tokens, so nothing to carry along."""
    from transformers import CLIPTokenizer

    from sfumato.modelfiles.open_model import METADATA_KEY, V1

    config = UNetConfig(block_channels=(32, 32), attention=(True, False), heads=(8, 8), depth=(1, 1), context_dim=64)
    _write_tiny_v1(tmp_path / "model", config)
    for file in (tmp_path / "model" / "tokenizer").iterdir():
        file.unlink()
    CLIPTokenizer.from_pretrained(V1 / "tokenizer").save_pretrained(tmp_path / "model" / "tokenizer")
    convert(tmp_path / "model", tmp_path / "model.safetensors", layout="compvis")
    with open_model(tmp_path / "model.safetensors") as files:
        assert METADATA_KEY not in files.unet.checkpoint.metadata


def _index(folder: Path) -> dict[str, object]:
    values: dict[str, object] = json.loads((folder / "model_index.json").read_text())
    return values


def test_the_index_says_what_is_in_the_folder(tmp_path: Path) -> None:
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    source = tmp_path / "source"
    shutil.copytree(POCKET, source)
    config = source / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"_class_name": "DDIMScheduler"}))
    (source / "safety_checker").mkdir()
    (source / "safety_checker" / "config.json").write_text("{}")
    (source / "safety_checker" / "model.fp16.safetensors").write_bytes(b"taken along, not looked at")
    convert(source, tmp_path / "out", layout="diffusers")
    index = _index(tmp_path / "out")
    assert index["scheduler"] == ["diffusers", "DDIMScheduler"]
    assert index["safety_checker"] == ["stable_diffusion", "StableDiffusionSafetyChecker"]
    assert index["feature_extractor"] == [None, None]  # the source has none
    assert index["requires_safety_checker"] is False  # as the source says, though it brings a checker
    (source / "model_index.json").write_text(json.dumps(_index(source) | {"requires_safety_checker": True}))
    shutil.rmtree(source / "safety_checker")
    convert(source, tmp_path / "without", layout="diffusers")
    index = _index(tmp_path / "without")
    assert (index["safety_checker"], index["requires_safety_checker"]) == ([None, None], True)
    assert isinstance(StableDiffusionPipeline.from_pretrained(tmp_path / "without").scheduler, DDIMScheduler)


@pytest.mark.parametrize("required", [True, False])
def test_whether_a_checker_is_required_survives_a_single_file(required: bool, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(POCKET, source)
    (source / "model_index.json").write_text(json.dumps(_index(source) | {"requires_safety_checker": required}))
    convert(source, tmp_path / "one.safetensors", layout="compvis")
    with open_model(tmp_path / "one.safetensors") as files:
        assert files.requires_safety_checker is required
    convert(tmp_path / "one.safetensors", tmp_path / "back", layout="diffusers")
    assert _index(tmp_path / "back")["requires_safety_checker"] is required


@pytest.mark.parametrize("scale", [None, 3.1415926535])
def test_the_recommended_guidance_survives_a_single_file_and_is_what_requests_get(
    scale: float | None, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    shutil.copytree(POCKET, source)
    index = {name: value for name, value in _index(source).items() if name != "_guidance_scale"}
    (source / "model_index.json").write_text(json.dumps(index if scale is None else index | {"_guidance_scale": scale}))
    convert(source, tmp_path / "one.safetensors", layout="compvis")
    convert(tmp_path / "one.safetensors", tmp_path / "back", layout="diffusers")
    assert _index(tmp_path / "back").get("_guidance_scale") == scale
    pipeline = sfumato.load_pipeline(tmp_path / "one.safetensors")
    assert pipeline.resolve(Request(prompt="a")).guidance_scale == (7.5 if scale is None else scale)
    assert pipeline.resolve(Request(prompt="a", guidance_scale=2.0)).guidance_scale == 2.0


@pytest.mark.parametrize("scale", ["much", True, -1, [4], 10**400])
def test_a_recommended_guidance_that_is_no_number_is_told(scale: object, tmp_path: Path) -> None:
    shutil.copytree(POCKET, tmp_path / "source")
    index = _index(tmp_path / "source") | {"_guidance_scale": scale}
    (tmp_path / "source" / "model_index.json").write_text(json.dumps(index))
    with (
        pytest.raises(InvalidConfig, match=r"model_index\.json: the guidance scale .* is no number from 0 to 1000"),
        open_model(tmp_path / "source"),
    ):
        pass


def test_diffusers_and_we_read_the_shards_we_write(tmp_path: Path) -> None:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel

    convert(POCKET, tmp_path / "shards", layout="diffusers", max_shard_size=2**20)
    for name in WEIGHTS:
        assert (tmp_path / "shards" / f"{name}.safetensors.index.json").is_file()
        assert not (tmp_path / "shards" / f"{name}.safetensors").exists()
    classes = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "text_encoder": CLIPTextModel}
    for part, kind in classes.items():
        expected = kind.from_pretrained(POCKET / part).state_dict()
        read = kind.from_pretrained(tmp_path / "shards" / part).state_dict()
        assert all(torch.equal(read[name], tensor) for name, tensor in expected.items())
    convert(tmp_path / "shards", tmp_path / "whole", layout="diffusers")
    for name in WEIGHTS:
        before, after = (load_file(root / f"{name}.safetensors") for root in (POCKET, tmp_path / "whole"))
        assert all(torch.equal(after[key], tensor) for key, tensor in before.items())
    for layout, size in (("compvis", 2**20), ("diffusers", 0)):
        with pytest.raises(InvalidRequest, match="max_shard_size"):
            convert(POCKET, tmp_path / "x", layout=layout, max_shard_size=size)


@pytest.mark.parametrize("shard_size", [None, 2**20], ids=["whole", "shards"])
@pytest.mark.parametrize("variant", ["fp16", "bf16"])
def test_diffusers_and_we_read_the_variants_we_write(variant: str, shard_size: int | None, tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline

    path = tmp_path / "variant"
    convert(POCKET, path, layout="diffusers", variant=variant, max_shard_size=shard_size)
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}[variant]
    files = [file.name for part in ("unet", "vae", "text_encoder") for file in (path / part).glob("*.safetensors*")]
    assert all(f".{variant}" in name for name in files) and any("index" in name for name in files) == bool(shard_size)
    theirs = StableDiffusionPipeline.from_pretrained(path, variant=variant, torch_dtype=dtype)
    expected = StableDiffusionPipeline.from_pretrained(POCKET, torch_dtype=dtype)
    for part in ("unet", "vae", "text_encoder"):
        read = getattr(theirs, part).state_dict()
        for name, tensor in getattr(expected, part).state_dict().items():
            assert read[name].dtype == tensor.dtype and torch.equal(read[name], tensor), name
    for chosen in (variant, None):  # a folder that has nothing else is read unasked
        with open_model(path, variant=chosen) as ours, open_model(POCKET) as original:
            for part_name, part in original.parts.items():
                other = ours.parts[part_name]
                for entry in part.entries:
                    tensor = part.checkpoint.read(entry.theirs, dtype)
                    assert torch.equal(other.checkpoint.read(entry.theirs), tensor)


def test_a_variants_name_says_what_is_in_it(tmp_path: Path) -> None:
    for options, says in (
        ({"layout": "diffusers", "variant": "fp32"}, "variant 'fp32' is unknown"),
        ({"layout": "diffusers", "variant": "fp16", "dtype": "float32"}, "holds float16, not float32"),
        ({"layout": "compvis", "variant": "fp16"}, "names files in a folder"),
    ):
        with pytest.raises(InvalidRequest, match=says):
            convert(POCKET, tmp_path / "x.safetensors", **options)
    assert list(tmp_path.iterdir()) == []


def test_neither_the_source_nor_what_is_no_model_is_replaced(tmp_path: Path) -> None:
    source = tmp_path / "models" / "mine"
    shutil.copytree(POCKET, source)
    for destination in (source, source.parent, tmp_path / "models" / "." / "mine"):
        with pytest.raises(InvalidRequest, match="write elsewhere"):
            convert(source, destination, layout="diffusers", overwrite=True)
    with pytest.raises(InvalidRequest, match="write elsewhere"):
        convert(POCKET, source, layout="diffusers", vae=source / "vae", overwrite=True)
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "cat.png").write_bytes(b"cat")
    with pytest.raises(OutputError, match="not a model's folder"):
        convert(source, photos, layout="diffusers", overwrite=True)
    assert (photos / "cat.png").read_bytes() == b"cat"
    for _ in range(2):  # a folder that is a model is replaced
        convert(source, tmp_path / "copy", layout="diffusers", overwrite=True)
