"""Writes peers.json and peers.npz: what pytorch-fid, torch-fidelity, clean-fid, torchmetrics, clip-mmd, transformers,
HPSv2 and efficientnet_lite_pytorch say of the inputs in tests/support/evaluation_inputs.py. `make peers` makes their
environment.

With `--check` it writes nothing, and fails where a number differs from the recorded one by more than 1e-6 relative.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))
from support import evaluation_inputs as inputs  # noqa: E402


def state(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    return {name: torch.from_numpy(values) for name, values in inputs.weights(shapes).items()}


def distances() -> dict[str, float]:
    from cleanfid import fid as cleanfid
    from clip_mmd.calculation import mmd
    from pytorch_fid.fid_score import calculate_frechet_distance
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torchmetrics.image.fid import _compute_fid

    x, y = inputs.feature_rows(600, 64, 1), inputs.feature_rows(500, 64, 2, shift=0.1)
    statistics = [fid_features_to_statistics(torch.from_numpy(rows)) for rows in (x, y)]
    moments = [value for each in statistics for value in (each["mu"], each["sigma"])]
    cleanfid.np.random.seed(0)
    # SciPy has done away with the argument; what it returned beside the root was an error estimate
    sqrtm = cleanfid.linalg.sqrtm
    with mock.patch.object(cleanfid.linalg, "sqrtm", lambda a, disp=True: sqrtm(a) if disp else (sqrtm(a), 0.0)):
        clean = cleanfid.frechet_distance(*moments)
        pytorch = calculate_frechet_distance(*moments)
    kid = kid_features_to_metric(
        torch.from_numpy(x),
        torch.from_numpy(y),
        kid_subsets=20,
        kid_subset_size=200,
        kid_kernel="poly",
        kid_kernel_poly_degree=3,
        kid_kernel_poly_gamma=None,
        kid_kernel_poly_coef0=1.0,
        rng_seed=2020,
        verbose=False,
    )
    unit = [torch.from_numpy(rows / np.linalg.norm(rows, axis=1, keepdims=True)) for rows in (x, y)]
    tensors = [torch.from_numpy(value) for value in moments]
    return {
        "frechet/pytorch-fid": float(pytorch),
        "frechet/torch-fidelity": fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"],
        "frechet/clean-fid": float(clean),
        "frechet/torchmetrics": float(_compute_fid(*tensors)),
        "kid/torch-fidelity": kid["kernel_inception_distance_mean"],
        "kid-deviation/torch-fidelity": kid["kernel_inception_distance_std"],
        # all pictures in one subset, so that nothing is drawn
        "kid/clean-fid": float(cleanfid.kernel_distance(x[:300], y[:300], num_subsets=1, max_subset_size=300)),
        "cmmd/clip-mmd": float(mmd(*unit)),  # Google Research's code, in torch
    }


def pixels() -> dict[str, float]:
    from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

    first, *_ = inputs.pictures()
    second = np.clip(first.astype(int) + np.random.RandomState(3).randint(-30, 31, first.shape), 0, 255)
    a, b = (torch.from_numpy(np.ascontiguousarray(p.transpose(2, 0, 1)))[None].double() for p in (first, second))
    _, similarity = structural_similarity_index_measure(b, a, data_range=255.0, return_full_image=True)
    return {
        "psnr/torchmetrics": float(peak_signal_noise_ratio(b, a, data_range=255.0)),
        # torchmetrics reflects the picture at its border; the paper's code, and ours, leaves such windows out
        "ssim/torchmetrics": float(similarity[..., 5:-5, 5:-5].mean()),
    }


def clip() -> tuple[dict[str, float], dict[str, np.ndarray]]:
    import transformers
    from torchmetrics.functional.multimodal import clip_score

    model = transformers.CLIPModel(transformers.CLIPConfig(**inputs.CLIP)).eval()
    model.load_state_dict(state(model))
    tokenizer = transformers.CLIPTokenizer.from_pretrained(HERE / "tokenizer")
    prepare = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})

    def processor(images: Any = None, text: Any = None, **options: Any) -> Any:
        if text is not None:
            return tokenizer(text, padding=True, return_tensors="pt")
        return prepare([Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images], return_tensors="pt")

    def pooled(answer: Any) -> torch.Tensor:  # transformers 5 answers with an object
        return answer if isinstance(answer, torch.Tensor) else answer.pooler_output

    adapter = SimpleNamespace(
        config=model.config,
        to=lambda device: adapter,
        get_image_features=lambda values: pooled(model.get_image_features(values)),
        get_text_features=lambda ids, mask: pooled(model.get_text_features(ids, mask)),
    )
    images = [torch.from_numpy(np.ascontiguousarray(p.transpose(2, 0, 1))) for p in inputs.pictures()]
    captions = inputs.CAPTIONS
    with torch.no_grad():
        score = clip_score(images, captions, lambda: (adapter, processor))
        arrays = {
            "clip/pictures": adapter.get_image_features(processor(images=images)["pixel_values"]).numpy(),
            "clip/captions": adapter.get_text_features(*processor(text=captions).values()).numpy(),
        }
    return {"clip-score/torchmetrics": float(score)}, arrays


def preference() -> dict[str, np.ndarray]:
    """What HPSv2's own copy of open_clip makes of pictures and prompts, with HPSv2's preparation of both."""
    from hpsv2.src.open_clip import CLIP, image_transform, tokenize

    model = CLIP(**inputs.OPEN_CLIP).eval()
    model.load_state_dict(state(model))
    prepare = image_transform(32, is_train=False, resize_longest_max=True)
    pictures = torch.stack([prepare(Image.fromarray(picture)) for picture in inputs.pictures()])
    with torch.no_grad():
        found = model(pictures, tokenize(inputs.CAPTIONS))
    return {"hpsv2/pictures": found[0].numpy(), "hpsv2/captions": found[1].numpy()}


def inception() -> dict[str, np.ndarray]:
    from cleanfid.resize import build_resizer
    from pytorch_fid import inception as pytorch
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    pictures = inputs.pictures()
    with (
        mock.patch.object(pytorch, "load_state_dict_from_url", lambda *_, **__: None),
        mock.patch.object(torch.nn.Module, "load_state_dict", lambda self, _: None),
    ):
        bare = pytorch.fid_inception_v3()
    bare.load_state_dict(state(bare))
    with mock.patch.object(pytorch, "fid_inception_v3", lambda: bare):
        network = pytorch.InceptionV3([3]).eval()
    unit = [torch.from_numpy(p.transpose(2, 0, 1) / np.float32(255.0))[None] for p in pictures]
    found = {}
    with torch.no_grad():
        found["inception/pytorch-fid"] = torch.cat([network(p)[0][:, :, 0, 0] for p in unit]).numpy()
        with tempfile.TemporaryDirectory() as folder:
            torch.save(state(bare), Path(folder, "weights.pth"))
            extractor = FeatureExtractorInceptionV3(
                "random", ["2048"], feature_extractor_weights_path=str(Path(folder, "weights.pth"))
            )
        raw = [torch.from_numpy(np.ascontiguousarray(p.transpose(2, 0, 1)))[None] for p in pictures]
        found["inception/torch-fidelity"] = torch.cat([extractor(p)[0] for p in raw]).numpy()
        # clean-fid's own network is a TorchScript download: its resize, then the same graph, normalised as there
        resize = build_resizer("clean")
        rows = []
        for picture in pictures:
            resized = torch.from_numpy(resize(picture).transpose(2, 0, 1))[None]
            x = (resized - 128.0) / 128.0
            for block in network.blocks:
                x = block(x)
            rows.append(x[:, :, 0, 0])
        found["inception/clean-fid"] = torch.cat(rows).numpy()
    return found


def efficientnet() -> dict[str, np.ndarray]:
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0").eval()
    network.load_state_dict(state(network))
    mean, deviation = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    rows = []
    for picture in inputs.pictures():
        resized = np.asarray(Image.fromarray(picture).resize((224, 224), Image.Resampling.LANCZOS))
        unit = torch.from_numpy(resized.transpose(2, 0, 1) / np.float32(255.0))
        with torch.no_grad():
            rows.append(network.extract_features(((unit - mean) / deviation)[None]).mean(dim=(2, 3)))
    return {"efficientnet-lite0": torch.cat(rows).numpy()}


def main() -> None:
    scores, embeddings = clip()
    numbers = {**distances(), **pixels(), **scores}
    arrays = {**embeddings, **preference(), **inception(), **efficientnet()}
    if "--check" in sys.argv:
        recorded = json.loads((HERE / "peers.json").read_text())
        for name, value in numbers.items():
            assert abs(value - recorded[name]) <= 1e-6 * abs(recorded[name]), (name, value, recorded[name])
        stored = np.load(HERE / "peers.npz")
        for name, rows in arrays.items():
            np.testing.assert_allclose(rows, stored[name], rtol=1e-4, atol=1e-4 * float(np.abs(rows).max()))
        sys.stdout.write(f"{len(numbers)} numbers and {len(arrays)} arrays are as recorded\n")
        return
    (HERE / "peers.json").write_text(json.dumps(numbers, indent=2) + "\n")
    np.savez_compressed(HERE / "peers.npz", **arrays)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
