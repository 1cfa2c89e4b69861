"""Our metrics against the programs that people publish numbers of; theirs were recorded by golden/evaluation/record.py
(`make peers` does it again), since they can't be installed beside our torch."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file

from sfumato.errors import CheckpointError
from sfumato.models.clip import Clip, ClipConfig
from sfumato.models.clip_text import ClipTextConfig
from sfumato.models.clip_vision import ClipVisionConfig
from sfumato.models.efficientnet import EfficientNet, _published
from sfumato.models.inception import Inception, load_inception
from sfumato.models.open_clip import OPEN_CLIP
from sfumato.pictures.pixels import psnr
from sfumato.report.features.clip_features import ClipFeatures
from sfumato.report.features.efficientnet_features import EfficientNetFeatures
from sfumato.report.features.inception_features import InceptionFeatures
from sfumato.report.features.pickscore_hps import Preference
from sfumato.report.features.resizing import CONVENTIONS
from sfumato.report.metrics.clip_score import cosines
from sfumato.report.metrics.fid import Gaussian, frechet_distance
from sfumato.report.metrics.kid_cmmd import cmmd, kid
from sfumato.report.metrics.ssim import ssim
from support import evaluation_inputs as inputs

FOLDER = Path(__file__).parents[1] / "golden" / "evaluation"
TOKENIZER = FOLDER / "tokenizer"
PEERS: dict[str, float] = json.loads((FOLDER / "peers.json").read_text())


@pytest.fixture(scope="module")
def arrays() -> dict[str, NDArray[Any]]:
    return dict(np.load(FOLDER / "peers.npz"))


@pytest.fixture(scope="module")
def rows() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return inputs.feature_rows(600, 64, 1), inputs.feature_rows(500, 64, 2, shift=0.1)


@pytest.mark.parametrize("peer", ["pytorch-fid", "torch-fidelity", "clean-fid", "torchmetrics"])
def test_frechet_distance(rows: tuple[NDArray[np.float64], NDArray[np.float64]], peer: str) -> None:
    found = frechet_distance(*map(Gaussian.of, rows))
    assert found == pytest.approx(PEERS[f"frechet/{peer}"], rel=1e-8)


def test_kid_draws_torch_fidelitys_subsets(rows: tuple[NDArray[np.float64], NDArray[np.float64]]) -> None:
    found = kid(*rows, subsets=20, subset_size=200)
    assert found.mean == pytest.approx(PEERS["kid/torch-fidelity"], rel=1e-8)
    assert found.deviation == pytest.approx(PEERS["kid-deviation/torch-fidelity"], rel=1e-8)


def test_kid_of_one_subset_is_clean_fids(rows: tuple[NDArray[np.float64], NDArray[np.float64]]) -> None:
    found = kid(rows[0][:300], rows[1][:300], subsets=1, subset_size=300)
    assert found.mean == pytest.approx(PEERS["kid/clean-fid"], rel=1e-8)


def test_cmmd(rows: tuple[NDArray[np.float64], NDArray[np.float64]]) -> None:
    assert cmmd(*rows) == pytest.approx(PEERS["cmmd/clip-mmd"], rel=1e-8)


def test_clip_score_is_a_hundredth_of_torchmetrics(arrays: dict[str, NDArray[Any]]) -> None:
    found = cosines(arrays["clip/pictures"], arrays["clip/captions"]).mean()
    assert 100 * found == pytest.approx(PEERS["clip-score/torchmetrics"], rel=1e-4)


def test_pixels_of_two_pictures() -> None:
    first, *_ = inputs.pictures()
    noise = np.random.RandomState(3).randint(-30, 31, first.shape)
    second = np.clip(first.astype(int) + noise, 0, 255).astype(np.uint8)
    assert psnr(first, second) == pytest.approx(PEERS["psnr/torchmetrics"], rel=1e-6)
    assert ssim(first, second) == pytest.approx(PEERS["ssim/torchmetrics"], rel=1e-5)
    assert ssim(first, first) == 1.0


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights by name, as the port's file has them, its classifier included."""
    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in Inception().state_dict().items()}
    tensors = {name: torch.from_numpy(values) for name, values in inputs.weights(shapes).items()}
    path = tmp_path_factory.mktemp("inception") / "port.safetensors"
    save_file({**tensors, "fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}, path)
    return path


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_inceptions_features(convention: Any, network: Path, arrays: dict[str, NDArray[Any]]) -> None:
    features = InceptionFeatures(network, conventions=[convention]).features(inputs.pictures())
    expected = arrays[f"inception/{convention}"]
    np.testing.assert_allclose(features[f"inception/{convention}"], expected, rtol=1e-3, atol=1e-3)
    # what tells the conventions apart is fifty times that
    others = [arrays[f"inception/{name}"] for name in CONVENTIONS if name != convention]
    assert min(float(np.abs(other - expected).max()) for other in others) > 0.05


def test_efficientnets_features(tmp_path: Path, arrays: dict[str, NDArray[Any]]) -> None:
    shapes = {_published(name): tuple(tensor.shape) for name, tensor in EfficientNet().state_dict().items()}
    tensors = {name: torch.from_numpy(values) for name, values in inputs.weights(shapes).items()}
    save_file(tensors, tmp_path / "lite0.safetensors")
    features = EfficientNetFeatures(tmp_path / "lite0.safetensors").features(inputs.pictures())
    expected = arrays["efficientnet-lite0"]
    np.testing.assert_allclose(features["efficientnet-lite0"], expected, rtol=1e-3, atol=1e-3 * float(expected.max()))


def test_clips_embeddings(tmp_path: Path, arrays: dict[str, NDArray[Any]]) -> None:
    """transformers' model, written to a folder, read by ours: the same directions, of length 1."""
    model = transformers.CLIPModel(transformers.CLIPConfig(**inputs.CLIP))
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    model.load_state_dict({name: torch.from_numpy(values) for name, values in inputs.weights(shapes).items()})
    model.save_pretrained(tmp_path)
    for file in TOKENIZER.iterdir():
        shutil.copy(file, tmp_path)
    clip = ClipFeatures(tmp_path)
    for found, name in (
        (clip.features(inputs.pictures())["clip"], "clip/pictures"),
        (clip.texts(inputs.CAPTIONS), "clip/captions"),
    ):
        expected = arrays[name] / np.linalg.norm(arrays[name], axis=1, keepdims=True)
        # their environment has torchvision, and so transformers' other resize: a grey level here and there
        np.testing.assert_allclose(found, expected, atol=5e-4)


def open_clip_file(path: Path, **beside: object) -> ClipConfig:
    """The model of the inputs as a training of open_clip saves it, its tensors named and shaped as there."""
    vision, text = inputs.OPEN_CLIP["vision_cfg"], inputs.OPEN_CLIP["text_cfg"]
    config = ClipConfig(
        text=ClipTextConfig(
            width=text["width"], hidden=4 * text["width"], layers=2, heads=text["heads"], activation="gelu"
        ),
        vision=ClipVisionConfig(
            image_size=vision["image_size"],
            patch_size=vision["patch_size"],
            width=vision["width"],
            hidden=4 * vision["width"],
            layers=2,
            heads=vision["width"] // vision["head_width"],
            projection_dim=inputs.OPEN_CLIP["embed_dim"],
            activation="gelu",
        ),
    )
    shapes = {}
    for ours, tensor in Clip(config).state_dict().items():
        theirs, shape = OPEN_CLIP.names(ours)[0], tuple(tensor.shape)
        if ".in_proj_" in theirs:
            shape = (3 * shape[0], *shape[1:])
        shapes[theirs] = shape[::-1] if theirs in ("text_projection", "visual.proj") else shape
    tensors = {name: torch.from_numpy(values) for name, values in inputs.weights(shapes).items()}
    torch.save({"epoch": 3, "name": "a run", "state_dict": {**tensors, **beside}}, path)
    return config


def test_hpsv2s_embeddings_and_score(tmp_path: Path, arrays: dict[str, NDArray[Any]]) -> None:
    """HPSv2's own code made the arrays; its score is the diagonal of their products."""
    judge = Preference(tmp_path / "HPS.pt", config=open_clip_file(tmp_path / "HPS.pt", attn_mask=torch.zeros(77, 77)))
    found = judge.features(inputs.pictures())["preference/HPS"]
    np.testing.assert_allclose(found, arrays["hpsv2/pictures"], atol=2e-6)
    scores = judge.scores(found, inputs.CAPTIONS)
    expected = np.diagonal(arrays["hpsv2/pictures"] @ arrays["hpsv2/captions"].T)
    np.testing.assert_allclose(scores, expected, atol=2e-6)


@pytest.mark.parametrize(
    ("beside", "message"),
    [
        ({"visual.head.weight": torch.zeros(2)}, "has unknown visual.head.weight"),
        ({"visual.proj": torch.zeros(24, 40)}, r"visual.proj is \(24, 40\), of another shape"),
        ({"text_projection": None}, "lacks text_projection"),
        ({"transformer.resblocks.0.attn.in_proj_bias": torch.zeros(16)}, r"in_proj_bias is \(16,\), of another"),
    ],
)
def test_a_file_of_another_model_is_no_judge(tmp_path: Path, beside: dict[str, Any], message: str) -> None:
    config = open_clip_file(tmp_path / "HPS.pt", **beside)
    with pytest.raises(CheckpointError, match=message):
        Preference(tmp_path / "HPS.pt", config=config)


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
@torch.no_grad()
def test_pickscore_is_as_its_authors_compute_it(tmp_path: Path, activation: str) -> None:
    """By transformers' model, tokenizer and processor; heads of 20 as ViT-H's are of 80, an end named as of old."""
    texts, vision = dict(inputs.CLIP["text_config"]), dict(inputs.CLIP["vision_config"])
    texts |= {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1, "hidden_act": activation}
    vision |= {"hidden_act": activation, "hidden_size": 40, "num_attention_heads": 2}
    theirs = transformers.CLIPModel(
        transformers.CLIPConfig(text_config=texts, vision_config=vision, projection_dim=24, logit_scale_init_value=4.6)
    ).eval()
    theirs.save_pretrained(tmp_path / "PickScore")
    for file in TOKENIZER.iterdir():
        shutil.copy(file, tmp_path / "PickScore")
    tokenizer = transformers.CLIPTokenizer.from_pretrained(TOKENIZER)
    prepare = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    words = tokenizer(inputs.CAPTIONS, padding=True, truncation=True, max_length=32, return_tensors="pt")
    pixels = prepare([Image.fromarray(picture) for picture in inputs.pictures()], return_tensors="pt")
    out = theirs(input_ids=words.input_ids, attention_mask=words.attention_mask, **pixels)
    judge = Preference(tmp_path / "PickScore")
    assert judge.scale == pytest.approx(float(theirs.logit_scale.exp()))
    found = judge.scores(judge.features(inputs.pictures())["preference/PickScore"], inputs.CAPTIONS)
    np.testing.assert_allclose(found, out.logits_per_image.diagonal().numpy(), atol=1e-3)


def test_another_network_is_refused_by_the_names_of_its_tensors(tmp_path: Path) -> None:
    save_file({"conv.weight": torch.zeros(3, 3)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match=r"lacks Conv2d_1a_3x3\.conv\.weight"):
        load_inception(tmp_path / "other.safetensors")
