"""`sfumato bench`: what is counted, who may take part, and that one who can't doesn't stop the others."""

from __future__ import annotations

import time
from pathlib import Path

import diffusers
import pytest
import torch
from torch import Tensor, nn

from sfumato.bench.bench_plan import Plan
from sfumato.bench.contenders import Contender, catalog, choose
from sfumato.bench.machine_speed import operations
from sfumato.bench.measure import Results, Row, measure
from sfumato.bench.plot import plot
from sfumato.bench.random_model import random_model
from sfumato.bench.results import document
from sfumato.bench.runners import load
from sfumato.engines.names import ENGINES
from sfumato.errors import InvalidRequest
from sfumato.modelfiles.conversion import convert
from sfumato.models.autoencoder import AutoencoderConfig
from sfumato.models.clip_text import ClipTextConfig
from sfumato.models.unet import UNet
from sfumato.models.unet_config import UNetConfig
from sfumato.pipeline.pipeline import Pipeline
from sfumato.pipeline.presets import PRESETS
from sfumato.pipeline.request import Request
from support.tiny_pipeline import POCKET

pytestmark = pytest.mark.timeout(900)  # each starts several processes, which import torch anew

UNET = UNetConfig(
    block_channels=(32, 64),
    attention=(True, False),
    heads=(4, 4),
    depth=(1, 1),
    layers_per_block=1,
    context_dim=24,
    norm_groups=8,
    sample_size=8,
)
VAE = AutoencoderConfig(block_channels=(16, 32), layers_per_block=1, norm_groups=4, sample_size=16)
TEXT = ClipTextConfig(vocab_size=4000, positions=77, width=24, hidden=48, layers=1, heads=2)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("random") / "model"
    return random_model(folder, unet_config=UNET, vae_config=VAE, text_config=TEXT, tokenizer=POCKET / "tokenizer")


def test_the_random_model_is_one_that_diffusers_reads(model: Path, tmp_path: Path) -> None:
    theirs = diffusers.UNet2DConditionModel.from_pretrained(model / "unet")
    again = random_model(
        tmp_path / "again", unet_config=UNET, vae_config=VAE, text_config=TEXT, tokenizer=POCKET / "tokenizer"
    )
    for file in ("unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors", "model_index.json"):
        assert (again / file).read_bytes() == (model / file).read_bytes()
    weight = theirs.state_dict()["conv_in.weight"]
    bound = (4 * 9) ** -0.5  # Kaiming's, as PyTorch has it for convolutions
    assert 0.9 * bound < float(weight.abs().max()) <= bound
    assert torch.equal(theirs.state_dict()["conv_norm_out.weight"], torch.ones(32))


def test_operations_are_those_of_the_formulas(model: Path) -> None:
    """Twice the multiply-adds of each layer's shapes, counted while the network runs, and 4·N·M·D a head."""
    plan = Plan(model="tiny", size=32, batch=2)
    unet = UNet(UNET).eval()
    counted = 0

    def convolution(layer: nn.Conv2d, _: object, out: Tensor) -> None:
        nonlocal counted
        counted += 2 * out.numel() * layer.in_channels * layer.kernel_size[0] * layer.kernel_size[1]

    def linear(layer: nn.Linear, _: object, out: Tensor) -> None:
        nonlocal counted
        counted += 2 * out.numel() * layer.in_features

    for module in unet.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(convolution)
        elif isinstance(module, nn.Linear):
            module.register_forward_hook(linear)
    side, pair = 16, 4
    with torch.inference_mode():
        unet(torch.zeros(pair, 4, side, side), torch.zeros(pair), torch.zeros(pair, 77, 24))
    places = 2 + 1  # of attention on the first level: one layer down, two up; the middle is on the second level
    below = (side // 2) ** 2
    attended = places * pair * 4 * 32 * (side**2) * (side**2 + 77) + pair * 4 * 64 * below * (below + 77)
    assert operations(model, plan)["step"] == counted + attended


def test_every_engine_takes_part_but_the_one_that_is_another() -> None:
    assert [name for name, one in catalog().items() if one.kind == "engine"] == [n for n in ENGINES if n != "auto"]
    assert [one.name for one in choose(["eager", "diffusers"])] == ["diffusers", "eager"]
    with pytest.raises(InvalidRequest, match="did you mean 'winograd'"):
        choose(["winogard"])


def test_every_preset_takes_part_where_whole_pictures_are_painted() -> None:
    assert {one.name for one in choose(what=("image",)) if one.kind == "preset"} == set(PRESETS)
    assert {one.kind for one in choose()} == {"diffusers", "engine", "stable-diffusion.cpp"}
    with pytest.raises(InvalidRequest, match="add --what image"):
        choose(["turbo"], what=("step", "image"))


def test_a_preset_paints_with_its_own_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, int]] = []

    def generate(self: Pipeline, request: Request, **_: object) -> None:
        seen.append((request.sampler, request.steps))

    monkeypatch.setattr(Pipeline, "generate", generate)
    for name in ("turbo", "eager"):
        load(catalog()[name], Plan(model="pocket", what=("image",)), POCKET).image(50)
    turbo = PRESETS["turbo"].fields
    assert seen == [(turbo["sampler"], turbo["steps"]), ("plms", 50)]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rounds": 0}, "rounds 0"),
        ({"size": 100}, "size 100"),
        ({"what": ("steps",)}, "what 'steps'"),
        ({"dtype": "int8"}, "dtype 'int8'"),
        ({"threads": -1}, "threads -1"),
    ],
)
def test_an_impossible_plan_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        Plan(**values)


def test_ratios_are_of_the_rounds_and_shares_of_the_peak_in_the_same_dtype() -> None:
    rows = [
        Row(contender=catalog()["diffusers"], why_not="not here"),
        Row(contender=catalog()["eager"], dtype="float32", seconds={"step": [2.0, 4.0, 8.0]}),
        Row(contender=catalog()["winograd"], dtype="float32", seconds={"step": [1.0, 1.0, 6.0]}),
    ]
    results = Results(
        plan=Plan(), machine={}, operations={"step": 10**9, "decode": 1}, gemm={"float32": 2.0}, rows=rows, fresh=False
    )
    assert results.first is rows[1]
    assert results.ratio(rows[2], "step") == 0.5  # of 0.5, 0.25 and 0.75
    assert results.gflops(rows[2]) == 1.0
    assert results.share_of_peak(rows[2]) == 0.5


def test_who_fails_or_is_absent_says_so_and_the_others_are_measured(model: Path, tmp_path: Path) -> None:
    """diffusers' pipelines are folders: a single file is what it can't load."""
    file = tmp_path / "one.safetensors"
    convert(model, file, layout="compvis")
    absent = Contender(name="absent", kind="engine", about="", packages=("no_such_package",), extra="bench")
    plan = Plan(model="tiny", rounds=2, threads=1, what=("step", "decode"))
    turns: list[str] = []
    contenders = [catalog()["diffusers"], absent, catalog()["eager"], catalog()["winograd-plain"]]
    results = measure(plan, contenders, file, on_turn=turns.append)
    broken, lacking, eager, plain = results.rows
    assert "Error" in broken.why_not
    assert lacking.why_not == "pip install 'sfumato[bench]'"
    assert (eager.runs, plain.runs) == ("eager", "winograd-plain")
    assert [len(eager.seconds[what]) for what in ("step", "decode")] == [2, 2]
    assert [len(row.load) for row in (eager, plain)] == [1, 1]
    assert eager.error == 0.0
    assert plain.error is not None and 0.0 < plain.error < 1e-5
    assert eager.peak is not None and eager.peak > 50e6
    assert [turn for turn in turns if turn.endswith("eager")] == ["round 1 of 2: eager", "round 2 of 2: eager"]
    made = document(results)
    assert made["contenders"][0]["not_measured"] == broken.why_not
    picture = plot(made, ".svg")
    assert picture == plot(made, ".svg")
    assert b"winograd-plain" in picture and b"absent" not in picture


def test_a_new_process_every_turn_and_an_engine_that_another_runs_for(model: Path) -> None:
    plan = Plan(model="tiny", rounds=2, threads=1, fresh=True, dtype="bfloat16")
    eager, plain = measure(plan, [catalog()["eager"], catalog()["winograd-plain"]], model).rows
    assert (len(eager.load), len(eager.seconds["step"]), eager.dtype) == (2, 2, "bfloat16")
    assert plain.why_not == "eager runs in its place here"


def test_who_has_no_time_left_gets_no_turn(model: Path) -> None:
    (row,) = measure(Plan(model="tiny"), [catalog()["eager"]], model, until=time.monotonic()).rows
    assert row.why_not == "the time was over before its turn"
    (row,) = measure(Plan(model="tiny"), [catalog()["eager"]], model, patience=1e-9).rows
    assert row.why_not == "it took longer than the 0 s there were"
