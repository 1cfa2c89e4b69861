"""Painting a plan: what decides a picture, shards, going on after kill -9, and what a run refuses to mix."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import sfumato
from sfumato.errors import InvalidRequest
from sfumato.modelfiles.load_options import LoadOptions
from sfumato.pipeline.metadata import read_provenance
from sfumato.pipeline.pipeline import Pipeline
from sfumato.report.evaluation.evaluation_plan import Plan, labelled, make_plan, read_run, start
from sfumato.report.evaluation.on_ray import generate_on_ray
from sfumato.report.evaluation.prompt_list import Prompt, PromptList, pinned
from sfumato.report.evaluation.protocols import Protocol
from sfumato.report.evaluation.run_pictures import (
    Shard,
    generate_missing,
    load_for_evaluation,
    missing,
    parse_shard,
    picture_path,
    read_pictures,
    seconds,
)
from sfumato.train.logs.compute_log import read_sessions
from support.tiny_pipeline import reference_pipeline

PROTOCOL = Protocol(name="test", guidance_scales=(1.5, 4.0), steps=(2,), seed=10)
PROMPTS = pinned([Prompt(text=text, fields={}) for text in ("a cat", "a dog", "a red heart", "a key", "a cat")])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny"
    reference_pipeline().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def pipeline(model: Path) -> Pipeline:
    return load_for_evaluation(str(model), LoadOptions(device="cpu"))


def plan_for(model: Path, folder: Path, prompts: PromptList = PROMPTS, protocol: Protocol = PROTOCOL) -> Plan:
    plan = make_plan(protocol, [("tiny", str(model))], prompts)
    start(folder, plan, prompts)
    return plan


def hashes(folder: Path) -> dict[str, str]:
    files = sorted((folder / "pictures").rglob("*.png"))
    return {file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.fixture(scope="module")
def whole(model: Path, pipeline: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    plan = plan_for(model, folder)
    assert generate_missing(folder, plan, PROMPTS, load=lambda _: pipeline) == 10
    return folder


def test_a_prompts_seed_is_its_own_and_the_same_in_every_cell(whole: Path) -> None:
    plan, prompts = read_run(whole)
    assert prompts == PROMPTS
    for cell in plan.cells:
        for index, text in enumerate(PROMPTS.texts):
            record = read_provenance(picture_path(whole, cell, index))
            assert record is not None
            assert (record.request.prompt, record.request.seed) == (text, 10 + index)
            assert record.request.guidance_scale == cell.guidance_scale
            assert (record.safety, record.watermark) == ("unchecked", "off")
    # the same words with another seed are another picture
    assert len(set(hashes(whole).values())) == 10
    assert set(seconds(whole)) == {cell.name for cell in plan.cells}
    (session,) = read_sessions(whole)  # what `sfumato emissions --run` reads
    assert session.last_step == 10
    assert session.seconds >= 0.9 * sum(seconds(whole).values())


def test_shards_make_up_the_whole(model: Path, pipeline: Pipeline, whole: Path, tmp_path: Path) -> None:
    plan = plan_for(model, tmp_path)
    generated = [
        generate_missing(tmp_path, plan, PROMPTS, shard=parse_shard(text), load=lambda _: pipeline)
        for text in ("2/3", "3/3")
    ]
    assert generated == [4, 2]
    assert missing(tmp_path, plan, plan.cells[0]) == [0, 3]
    with pytest.raises(InvalidRequest, match="2 of 5 pictures are not painted yet"):
        read_pictures(tmp_path, plan, plan.cells[0])
    generate_missing(tmp_path, plan, PROMPTS, shard=Shard(index=0, of=3), load=lambda _: pipeline)
    assert hashes(tmp_path) == hashes(whole)


def test_a_batch_of_which_one_picture_is_lost_is_painted_as_before(model: Path, tmp_path: Path) -> None:
    """Neighbours in a batch change the last bits: the same ones have to be there again."""
    plan = plan_for(model, tmp_path)
    batched = load_for_evaluation(str(model), LoadOptions(device="cpu", batch_size=3))
    generate_missing(tmp_path, plan, PROMPTS, load=lambda _: batched)
    before = hashes(tmp_path)
    for index in (1, 4):
        picture_path(tmp_path, plan.cells[1], index).unlink()
    assert generate_missing(tmp_path, plan, PROMPTS, load=lambda _: batched) == 2
    assert hashes(tmp_path) == before


def test_kill_9_in_the_middle_changes_nothing(model: Path, pipeline: Pipeline, tmp_path: Path) -> None:
    prompts = pinned([Prompt(text=f"picture {i}", fields={}) for i in range(40)])
    plan = plan_for(model, tmp_path / "killed", prompts)
    script = (
        "import sys\nfrom pathlib import Path\n"
        "from sfumato.modelfiles.load_options import LoadOptions\n"
        "from sfumato.report.evaluation.run_pictures import load_for_evaluation, generate_missing\n"
        "from sfumato.report.evaluation.evaluation_plan import read_run\n"
        "folder = Path(sys.argv[1])\n"
        "options = LoadOptions(device='cpu')\n"
        "generate_missing(folder, *read_run(folder), load=lambda model: load_for_evaluation(model, options))\n"
    )
    source = str(Path(sfumato.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": source}
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "killed")], env=environment)
    while len(hashes(tmp_path / "killed")) < 3 and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    there = len(hashes(tmp_path / "killed"))
    assert 3 <= there < 80
    # half a line of the log of times, too
    log = next((tmp_path / "killed").glob("times-*.jsonl"))
    log.write_bytes(log.read_bytes()[:-5])
    assert generate_missing(tmp_path / "killed", plan, prompts, load=lambda _: pipeline) == 80 - there

    other = plan_for(model, tmp_path / "whole", prompts)
    generate_missing(tmp_path / "whole", other, prompts, load=lambda _: pipeline)
    assert hashes(tmp_path / "killed") == hashes(tmp_path / "whole")
    assert sum(seconds(tmp_path / "killed").values()) > 0


def test_a_run_is_never_continued_with_anything_else(model: Path, whole: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="holds an evaluation with other cells"):
        plan_for(model, whole, protocol=Protocol(name="test", guidance_scales=(1.5, 5.0), steps=(2,), seed=10))
    with pytest.raises(InvalidRequest, match="holds an evaluation with other prompts sha256"):
        plan_for(model, whole, pinned(PROMPTS.prompts[:4]))
    plan, prompts = read_run(whole)
    other = load_for_evaluation(str(model), LoadOptions(device="cpu", dtype="bfloat16"))
    picture_path(whole, plan.cells[0], 0).rename(tmp_path / "kept.png")
    try:
        with pytest.raises(InvalidRequest, match="made with dtype float32, now it is bfloat16"):
            generate_missing(whole, plan, prompts, load=lambda _: other)
    finally:
        (tmp_path / "kept.png").rename(picture_path(whole, plan.cells[0], 0))


def test_a_changed_list_of_prompts_is_noticed(model: Path, tmp_path: Path) -> None:
    plan_for(model, tmp_path)
    with (tmp_path / "prompts.jsonl").open("a") as file:
        file.write('{"prompt": "one more"}\n')
    with pytest.raises(InvalidRequest, match="has changed since"):
        read_run(tmp_path)
    with pytest.raises(InvalidRequest, match="holds no evaluation"):
        read_run(tmp_path / "elsewhere")


def test_cells_that_can_not_be_are_refused_before_any_work(model: Path) -> None:
    with pytest.raises(InvalidRequest, match="sampler"):
        make_plan(Protocol(name="t", samplers=("plmz",)), [("a", str(model))], PROMPTS)
    with pytest.raises(InvalidRequest, match=r"two cells are called a-g7\.5-plms-50"):
        make_plan(Protocol(name="t"), [("a", "one"), ("a", "two")], PROMPTS)
    with pytest.raises(InvalidRequest, match="cell"):
        make_plan(Protocol(name="t"), [("../a", "one")], PROMPTS)
    for text in ("0/3", "4/3", "1", "a/b"):
        with pytest.raises(InvalidRequest, match="shard"):
            parse_shard(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("pocket", ("pocket", "pocket")),
        ("early=runs/10", ("early", "runs/10")),
        ("runs/step 10.ckpt", ("step-10.ckpt", "runs/step 10.ckpt")),
        ("CompVis/stable-diffusion-v1-4", ("stable-diffusion-v1-4", "CompVis/stable-diffusion-v1-4")),
    ],
)
def test_a_models_label(text: str, expected: tuple[str, str]) -> None:
    assert labelled(text) == expected


class InProcessRay:
    """Ray's calls, one task after the other in this process."""

    def __init__(self) -> None:
        self.asked: list[dict[str, object]] = []

    def is_initialized(self) -> bool:
        return True

    def remote(self, **options: object) -> object:
        self.asked.append(options)

        class Remote:
            def __init__(self, function: object) -> None:
                assert callable(function)
                self.remote = function

        return Remote

    def wait(self, waiting: list[int]) -> tuple[list[int], list[int]]:
        return waiting[:1], waiting[1:]

    def get(self, finished: list[int]) -> list[int]:
        return finished


def test_tasks_of_a_cluster_paint_the_same(
    model: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = InProcessRay()
    monkeypatch.setattr("sfumato.report.evaluation.on_ray.require", lambda module, extra: ray)
    plan_for(model, tmp_path)
    told: list[int] = []
    assert generate_on_ray(tmp_path, 3, options=LoadOptions(device="cpu"), gpus=0.5, on_pictures=told.append) == 10
    assert sorted(told) == [2, 4, 4]
    assert ray.asked == [{"num_gpus": 0.5, "max_retries": 3}]
    assert hashes(tmp_path) == hashes(whole)
