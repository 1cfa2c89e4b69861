"""DeepCache and token merging: against their authors' packages, an implementation as slow as the paper's words, and the
exact forward."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomesd
import torch
from DeepCache import DeepCacheSDHelper
from torch import Tensor

from sfumato import load_pipeline
from sfumato.engines.engine import called_as_written
from sfumato.engines.exact_unet import ExactUNet
from sfumato.engines.native_kernels import NativeKernels
from sfumato.engines.torch_kernels import TorchKernels
from sfumato.models.unet import UNet
from sfumato.models.unet_inputs import Shortcuts, UNetInputs
from sfumato.nn import token_merging
from sfumato.nn.token_merging import Merging, destinations
from support.engine_networks import ask, gaussian, relative, tiny_unet
from support.tiny import UNETS, diffusers_unet
from support.tiny_pipeline import Pair

Forward = Callable[[UNetInputs], Tensor]
ENGINES: dict[str, Callable[[UNet], Forward]] = {
    "eager": called_as_written,
    "compiled": lambda unet: ExactUNet(unet, NativeKernels()),
    "plain": lambda unet: ExactUNet(unet, TorchKernels()),
}


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Callable[[UNet], Forward]:
    return ENGINES[request.param]


def inputs(unet: UNet, t: float, seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """A guided pair."""
    x = gaussian(1, unet.config.in_channels, 16, 12, seed=seed).repeat(2, 1, 1, 1)
    return x, torch.full((2,), t), gaussian(2, 7, unet.config.context_dim, seed=9)


@pytest.mark.parametrize("name", UNETS)
@torch.inference_mode()
def test_a_whole_forward_is_exact_and_one_over_its_own_features_too(
    name: str, engine: Callable[[UNet], Forward]
) -> None:
    unet = tiny_unet(name)
    run, given = engine(unet), inputs(unet, 981.0)
    exact = unet(*given)
    layers = unet.layers_up
    for depth in sorted({1, layers // 2, layers - 1} - {0, layers}):
        shortcuts = Shortcuts(depth=depth)
        assert relative(ask(run, *given, shortcuts), exact) <= 2e-5
        assert shortcuts.deep is not None and len(shortcuts.deep) == 2
        assert relative(ask(run, *given, shortcuts), exact) <= 2e-5
    if engine is ENGINES["eager"]:
        assert torch.equal(ask(run, *given, Shortcuts()), exact)


@pytest.mark.parametrize(("branch", "interval"), [(0, 1), (0, 2), (1, 3), (3, 2), (8, 3)])
def test_pictures_are_those_of_the_authors_deepcache(v1_like: Pair, branch: int, interval: int) -> None:
    """Their branch b of diffusers' 2-layer levels is our depth b + 1."""
    noise = gaussian(1, 4, 8, 8)
    v1_like.use("DDIMScheduler", clip_sample=False, timestep_spacing="leading")
    helper = DeepCacheSDHelper(pipe=v1_like.theirs)
    helper.set_params(cache_interval=interval, cache_branch_id=branch)
    helper.enable()
    try:
        options: dict[str, Any] = {"num_inference_steps": 7, "guidance_scale": 5.0, "output_type": "latent"}
        theirs = v1_like.theirs("a red heart", latents=noise, **options).images
    finally:
        helper.disable()
    ours = v1_like.pipeline.generate(
        "a red heart",
        latents=noise,
        sampler="ddim",
        steps=7,
        guidance_scale=5.0,
        cache_interval=interval,
        cache_depth=branch + 1,
    )
    assert float((ours.latents[0] - theirs[0]).abs().max() / theirs.std()) < 1e-3


@pytest.fixture(scope="module")
def v1_like(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder: Path = tmp_path_factory.mktemp("v1-like")
    pair = Pair(folder, unet="v1-like")
    pair.pipeline = load_pipeline(folder, device="cpu", safety="off", engine="eager")
    return pair


def slowly(tokens: Tensor, chosen: Tensor, ratio: float) -> tuple[list[list[int]], list[int]]:
    """The paper's section 3 in loops, for one picture (N, C): the groups of merged tokens, and each token's group."""
    count = len(tokens)
    targets = [i for i in range(count) if chosen[i]]
    sources = [i for i in range(count) if not chosen[i]]
    edges = []
    for i in sources:
        likeness = [float(torch.cosine_similarity(tokens[i], tokens[j], dim=0)) for j in targets]
        best = max(range(len(targets)), key=likeness.__getitem__)
        edges.append((likeness[best], i, targets[best]))
    edges.sort(reverse=True)
    members = {j: [j] for j in targets}
    for _, i, j in edges[: int(count * ratio)]:
        members[j].append(i)
    for _, i, _ in edges[int(count * ratio) :]:
        members[i] = [i]
    groups = list(members.values())
    return groups, [next(g for g, group in enumerate(groups) if i in group) for i in range(count)]


@pytest.mark.parametrize("size", [(4, 6), (5, 7), (2, 2), (1, 8)], ids=str)
@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.75])
def test_merging_is_the_papers(size: tuple[int, int], ratio: float) -> None:
    tokens = gaussian(2, size[0] * size[1], 5).double()
    values = gaussian(2, size[0] * size[1], 3, seed=4).double()
    matching = Merging(ratio=ratio, seed=11).match(tokens, size)
    merged = matching.merge(values)
    chosen = destinations(*size, 11)
    assert int(chosen.sum()) == (size[0] // 2) * (size[1] // 2)
    if not chosen.any():
        assert torch.equal(merged, values)
        return
    for b in range(2):
        groups, of = slowly(tokens[b], chosen, ratio)
        assert len(groups) == matching.count
        expected = torch.stack([values[b][groups[g]].mean(dim=0) for g in of])
        torch.testing.assert_close(matching.unmerge(merged)[b], expected)


@pytest.mark.parametrize("ratio", [0.25, 0.5])
@pytest.mark.parametrize("size", [(8, 8), (7, 10)], ids=str)
def test_merging_is_tomesds(ratio: float, size: tuple[int, int]) -> None:
    height, width = size
    tokens, values = gaussian(2, height * width, 8), gaussian(2, height * width, 6, seed=3)
    merge, unmerge = tomesd.merge.bipartite_soft_matching_random2d(
        tokens, width, height, 2, 2, int(height * width * ratio), generator=torch.Generator().manual_seed(5)
    )
    ours = Merging(ratio=ratio, seed=5).match(tokens, size)
    assert ours.merge(values).shape == merge(values).shape
    torch.testing.assert_close(ours.unmerge(ours.merge(values)), unmerge(merge(values)))
    torch.testing.assert_close(ours.merge(values).sum(dim=1), merge(values).sum(dim=1))


@pytest.mark.parametrize("name", ["v1-like", "v2-like", "inpainting"])
@torch.inference_mode()
def test_a_forward_with_merging_is_tomesds(
    name: str, engine: Callable[[UNet], Forward], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the draw, which they repeat in every layer: the first token of each cell is the destination."""

    def corners(height: int, width: int, seed: int) -> Tensor:
        chosen = torch.zeros(height, width, dtype=torch.bool)
        chosen[: height // 2 * 2 : 2, : width // 2 * 2 : 2] = True
        return chosen.flatten()

    monkeypatch.setattr(token_merging, "destinations", corners)
    unet, theirs = tiny_unet(name), diffusers_unet(name)
    given = inputs(unet, 500.0)
    exact = theirs(*given).sample
    tomesd.apply_patch(theirs, ratio=0.5, use_rand=False)
    expected = theirs(*given).sample
    assert relative(expected, exact) > 1e-3
    merging = Merging(ratio=0.5, seed=0)
    assert relative(ask(engine(unet), *given, Shortcuts(merging=merging)), expected) <= 2e-5


@torch.inference_mode()
def test_pictures_are_merged_each_by_itself() -> None:
    tokens = gaussian(3, 64, 8)
    together = Merging(ratio=0.5, seed=2).match(tokens, (8, 8))
    for b in range(3):
        alone = Merging(ratio=0.5, seed=2).match(tokens[b : b + 1], (8, 8))
        assert torch.equal(alone.groups[0], together.groups[b])


def test_nothing_to_merge_changes_no_bit() -> None:
    matching = Merging(ratio=0.01, seed=0).match(gaussian(1, 16, 4), (4, 4))
    values = gaussian(1, 16, 4, seed=2)
    assert torch.equal(matching.unmerge(matching.merge(values)), values)
