"""`sfumato train`: from a folder of pictures to a model that we and diffusers load, stopped, resumed, refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.distributed import TCPStore

import sfumato
from sfumato.caption_retrieval import Retriever
from sfumato.cli.main import run
from sfumato.modelfiles.open_model import V1
from sfumato.pocket.training import pocket_stages as pocket
from sfumato.progress import Cancellation
from sfumato.train.checkpoints import read_checkpoint
from sfumato.train.logs.compute_log import read_sessions
from support.command_line import Cli, files_in
from support.made_data import emoji_set, write_tar
from support.train_pictures import Shapes

AUTOENCODER = """
crop = 16
first_logvar = -6.0
[run]
steps = 4
batch = 2
log_every = 2
validate_every = 2
[model]
block_channels = [8, 16]
layers_per_block = 1
norm_groups = 1
sample_size = 16
[data]
held_out = 6
"""
DIFFUSION = """
text_rate = 1.0
prompts = ["a red shape", "a blue shape"]
sample_steps = 2
[run]
steps = 4
batch = 2
log_every = 2
validate_every = 2
ema_sigma_rels = [0.05, 0.1]
snapshot_every = 1
[unet]
block_channels = [16, 32]
attention = [true, false]
layers_per_block = 1
heads = [2, 2]
depth = [1, 1]
context_dim = 16
norm_groups = 8
sample_size = 8
[text_encoder]
vocab_size = 4000
positions = 77
width = 16
hidden = 32
layers = 1
heads = 2
[data]
held_out = 6
"""
CLIP = """
[run]
steps = 4
batch = 4
log_every = 2
validate_every = 4
[text_encoder]
vocab_size = 4000
positions = 12
width = 16
hidden = 32
layers = 1
heads = 2
[vision]
image_size = 16
patch_size = 8
width = 16
hidden = 32
layers = 1
heads = 2
projection_dim = 8
[data]
held_out = 3
"""
CPU = ("--device", "cpu", "--threads", "1")


def write_pictures(folder: Path, count: int) -> None:
    folder.mkdir(parents=True)
    shapes = Shapes(count, 24)
    for index in range(count):
        sample = shapes.sample(index)
        sample.picture.save(folder / f"{index:02}.png")
        (folder / f"{index:02}.txt").write_text(sample.captions[0])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of pictures, configs, and a finished run of autoencoder and diffusion model."""
    folder = tmp_path_factory.mktemp("made")
    write_pictures(folder / "pictures", 18)
    (folder / "autoencoder.toml").write_text(AUTOENCODER)
    (folder / "diffusion.toml").write_text(DIFFUSION)
    data = ("--data", str(folder / "pictures"), *CPU)
    assert run(["train", "autoencoder", str(folder / "autoencoder.toml"), *data, "--out", str(folder / "ae")]) == 0
    words = ["train", "diffusion", str(folder / "diffusion.toml"), *data, "--autoencoder", str(folder / "ae")]
    assert run([*words, "--tokenizer", "pocket", "--out", str(folder / "painter")]) == 0
    return folder


def test_a_run_publishes_a_model_that_paints_here_and_in_diffusers(made: Path) -> None:
    model = made / "painter" / "model"
    prompt = "a red shape"
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(model, torch_dtype=torch.float32)
    theirs.set_progress_bar_config(disable=True)
    picture = theirs(prompt, latents=noise, num_inference_steps=4, guidance_scale=2.0, output_type="np").images[0]
    pipeline = sfumato.load_pipeline(str(model), safety="off", watermark=False)
    ours = pipeline.generate(prompt, seed=0, steps=4, guidance_scale=2.0).images[0]
    difference = np.abs(np.asarray(ours).astype(float) - 255.0 * picture).max()
    assert difference <= 1.5  # rounding to bytes, and the last bits of float16 weights
    text = (model / "README.md").read_text()
    row = next(line for line in text.splitlines() if line.startswith("| painter |"))
    assert " 4 | 2 | 8 | " in row  # steps, batch, pictures seen
    assert "unknown" in text


def test_a_run_keeps_sheets_numbers_and_its_config(made: Path) -> None:
    painter = made / "painter"
    with Image.open(painter / "validation" / "step-00000004.png") as sheet:
        assert sheet.size == (8 * 16, 16)
    lines = [json.loads(line) for line in (painter / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 2, 4, 4]
    assert "# optimiser steps of the whole stage\nsteps = 4\n" in (painter / "config.toml").read_text()


def test_export_writes_what_the_run_published(cli: Cli, folder: Path, made: Path) -> None:
    outcome = cli("train", "export", str(made / "painter"), "--out", "again", "--json")
    assert json.loads(outcome.out) == {"run": str(made / "painter"), "kind": "diffusion", "step": 4, "model": "again"}
    assert files_in(folder / "again") == files_in(made / "painter" / "model")
    for name in files_in(folder / "again"):
        assert (folder / "again" / name).read_bytes() == (made / "painter" / "model" / name).read_bytes()
    outcome = cli("train", "export", str(made / "ae"), "--out", "vae", "--dtype", "fp32")
    assert outcome.lines == ["vae"]
    diffusers.AutoencoderKL.from_pretrained(folder / "vae")
    assert cli("train", "export", str(made / "ae"), "--out", "vae").code == 1
    assert cli("train", "export", str(made / "pictures"), "--out", "none").errors[0].startswith("sfumato: ")


def test_export_of_another_average(cli: Cli, folder: Path, made: Path) -> None:
    """At a width that was kept, it is what the last checkpoint has of it."""
    words = ("train", "export", str(made / "painter"), "--dtype", "fp32", "--json")
    outcome = cli(*words, "--out", "kept", "--sigma-rel", "0.1")
    about = json.loads(outcome.out)
    assert (about["step"], about["sigma_rel"], about["model"]) == (4, 0.1, "kept")
    assert about["profile_error"] < 1e-6
    saved = read_checkpoint(made / "painter" / "checkpoints" / "step-00000004.safetensors")
    published = load_file(folder / "kept" / "unet" / "diffusion_pytorch_model.safetensors")
    for name, tensor in published.items():
        torch.testing.assert_close(tensor, saved.tensors[f"sigma_rel_0.1.unet.{name}"], atol=1e-7, rtol=1e-6)
    assert json.loads(cli(*words, "--out", "other", "--sigma-rel", "0.07").out)["profile_error"] > 1e-3
    other = load_file(folder / "other" / "unet" / "diffusion_pytorch_model.safetensors")
    assert not torch.equal(other["conv_in.weight"], published["conv_in.weight"])
    for run_, wrong, message in (
        ("painter", "0.4", "sfumato: sigma_rel = 0.4 must be above 0 and below 0.2887"),
        ("ae", "0.1", "sfumato: --sigma-rel 0.1: an autoencoder's latents get unit variance"),
    ):
        outcome = cli("train", "export", str(made / run_), "--out", "none", "--sigma-rel", wrong)
        assert outcome.code == 2
        assert outcome.errors[0].startswith(message)
        assert not (folder / "none").exists()


def test_a_run_goes_on_where_it_was(cli: Cli, folder: Path, made: Path) -> None:
    """Stopped before the first step, then without a word about its options: the same weights as never stopped."""
    pictures = str(made / "pictures")
    words = ("train", "diffusion", str(made / "diffusion.toml"), "--data", pictures, *CPU)
    parts = ("--autoencoder", str(made / "ae"), "--tokenizer", "pocket")
    outcome = cli(*words, *parts, "--out", "run", "--minutes", "0")
    assert outcome.code == 0
    assert outcome.lines == ["run"]
    again = f"go on with: sfumato train diffusion --data {pictures} --out run"
    assert outcome.err.splitlines()[-1] == f"the time is over after step 0 of 4, with a checkpoint; {again}"
    assert not (folder / "run" / "model").exists()
    outcome = cli("train", "diffusion", "--data", pictures, "--out", "run", "--json", *CPU)
    document = json.loads(outcome.out)
    assert (document["step"], document["finished"], document["model"]) == (4, True, "run/model")
    for name in files_in(folder / "run" / "model"):
        if Path(name).name in ("README.md", "card.toml"):  # they say how long it took
            continue
        assert (folder / "run" / "model" / name).read_bytes() == (made / "painter" / "model" / name).read_bytes()


ENTRY = ("-m", "sfumato.cli.entry")
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--no-python")


def environment(**values: object) -> dict[str, str]:
    own = {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    return os.environ | own | {name: str(value) for name, value in values.items()}


def torchrun(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command line on two processes, as docs/training.md has it."""
    return subprocess.run(
        [sys.executable, *TORCHRUN, sys.executable, *ENTRY, *arguments],
        env=environment(), capture_output=True, text=True, timeout=240,
    )  # fmt: skip


def killed_beside_another(folder: Path, arguments: tuple[str, ...]) -> tuple[int, list[str]]:
    """Two processes as torchrun starts them, the second killed when the run in `folder` has come to step 2: exit
    code and lines of the first. torchrun itself would end it at about the time at which it says why it stops."""
    # Port 0 is one that is free. The store is there before they are, as torchrun's is.
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    rendezvous = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": store.port, "WORLD_SIZE": 2}
    rendezvous["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    processes = [
        subprocess.Popen(
            [sys.executable, *ENTRY, *arguments],
            env=environment(**rendezvous, RANK=rank, LOCAL_RANK=rank), stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        log = folder / "metrics.jsonl"
        while not (log.exists() and log.stat().st_size) and all(process.poll() is None for process in processes):
            time.sleep(0.005)
        processes[1].send_signal(signal.SIGKILL)
        told = processes[0].communicate(timeout=240)[1]
    finally:
        for process in processes:
            process.kill()
            process.wait()
            assert process.stderr is not None
            process.stderr.close()
    return processes[0].returncode, told.splitlines()


def test_torchrun_trains_as_one_process_does_and_goes_on_after_kill_9(cli: Cli, folder: Path, made: Path) -> None:
    many = DIFFUSION.replace("steps = 4\nbatch", "steps = 16\ncheckpoint_minutes = 0.0\nbatch")
    (folder / "many.toml").write_text(many.replace("validate_every = 2", "validate_every = 8"))
    words = ("train", "diffusion", "many.toml", "--data", str(made / "pictures"), *CPU)
    words = (*words, "--autoencoder", str(made / "ae"), "--tokenizer", "pocket", "--out")
    code, told = killed_beside_another(folder / "two", (*words, "two"))
    assert code == 1
    assert [line for line in told if line.startswith("sfumato: ")] == [
        "sfumato: process 0 of 2 stopped, because another one has gone: see what ended that one, and give the command "
        "again to go on from the newest checkpoint"
    ]
    done = torchrun(*words, "two")
    assert (done.returncode, done.stdout.splitlines()) == (0, ["two/model"])
    assert "find_unused_parameters" not in done.stderr  # torch's warning that nothing is
    session = read_sessions(folder / "two")[-1]
    assert session.first_step > 0
    assert (session.devices, session.last_step) == (2, 16)
    assert cli(*words, "one").lines == ["one/model"]
    for ours, theirs in zip(read_metrics(folder / "two"), read_metrics(folder / "one"), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)


def read_metrics(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("rank", [0, 1])
def test_pockets_recipe_refuses_torchrun_in_one_line(cli: Cli, monkeypatch: pytest.MonkeyPatch, rank: int) -> None:
    """The first process says why, the others end with it."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", str(rank))
    outcome = cli("train", "recipe", "pocket", "--stage", "all", "--data", "emoji", "--out", "p", *CPU)
    assert outcome.code != 0
    line = "sfumato: pocket draws and encodes its pictures in one process: start it without torchrun"
    assert outcome.err.splitlines() == ([line] if rank == 0 else [])
    assert not Path("p").exists()


def test_fine_tuning_starts_from_a_model_and_its_parts(cli: Cli, folder: Path, made: Path) -> None:
    model = made / "painter" / "model"
    (folder / "fine.toml").write_text(DIFFUSION.replace("text_rate = 1.0", "text_rate = 0.0"))
    words = ("train", "diffusion", "fine.toml", "--data", str(made / "pictures"), "--start", str(model), *CPU)
    assert cli(*words, "--out", "fine").code == 0
    before, after = (sfumato.load_pipeline(str(path), safety="off") for path in (model, folder / "fine" / "model"))
    for name, tensor in before.model.text_encoder.state_dict().items():
        assert torch.equal(tensor, after.model.text_encoder.state_dict()[name])
    moved = [
        name
        for name, tensor in before.model.unet.state_dict().items()
        if not torch.equal(tensor, after.model.unet.state_dict()[name])
    ]
    assert moved
    shutil.rmtree(folder / "fine" / "checkpoints")
    refused = cli("train", "diffusion", "fine.toml", "--data", str(made / "pictures"), "--out", "other", *CPU)
    assert refused.code == 2
    assert "knows no words yet" in refused.errors[0]


def test_latents_encoded_before_train_too(cli: Cli, folder: Path, made: Path) -> None:
    encoded = cli("data", "encode", str(made / "pictures"), "latents", "-a", str(made / "ae"), "--size", "16")
    assert encoded.code == 0, encoded.err
    words = ("train", "diffusion", str(made / "diffusion.toml"), "--data", "latents", "--tokenizer", "pocket", *CPU)
    assert cli(*words, "--autoencoder", str(made / "ae"), "--out", "run").code == 0
    assert not (folder / "run" / "latents").exists()
    refused = cli(*words, "--autoencoder", "pocket", "--out", "other")
    assert len(refused.errors) == 1
    (folder / "larger.toml").write_text(DIFFUSION.replace("sample_size = 8", "sample_size = 16"))
    words = ("train", "diffusion", "larger.toml", "--data", "latents", "--tokenizer", "pocket", *CPU)
    refused = cli(*words, "--autoencoder", str(made / "ae"), "--out", "third")
    assert "unet.sample_size" in refused.errors[0]


@pytest.mark.parametrize(("kind", "config"), [("diffusion", DIFFUSION), ("clip", CLIP)])
def test_a_tokenizer_that_does_not_fit_is_not_kept(cli: Cli, folder: Path, made: Path, kind: str, config: str) -> None:
    """So that the advice, another tokenizer for the same run, can be followed."""
    (folder / "few.toml").write_text(config.replace("vocab_size = 4000", "vocab_size = 10"))
    words = ("train", kind, "few.toml", "--data", str(made / "pictures"), "--out", "refused", *CPU)
    parts = ("--autoencoder", str(made / "ae")) if kind == "diffusion" else ()
    refused = cli(*words, *parts, "--tokenizer", "pocket")
    assert refused.code == 2 and "the tokenizer has 4000 tokens" in refused.errors[0]
    assert not (folder / "refused" / "parts" / "tokenizer").exists()


def test_a_retriever_is_trained_and_judges(cli: Cli, folder: Path, made: Path) -> None:
    (folder / "clip.toml").write_text(CLIP)
    words = ("train", "clip", "clip.toml", "--data", str(made / "pictures"), "--tokenizer", "pocket", *CPU)
    outcome = cli(*words, "--out", "judge", "--json")
    document = json.loads(outcome.out)
    assert {"validation_top1", "validation_top5", "validation_top1_shuffled"} <= document["last"].keys()
    retriever = Retriever.from_folder(folder / "judge" / "model")
    with Image.open(made / "pictures" / "00.png") as picture:
        similar = retriever.pictures([picture]) @ retriever.captions(["a red shape", "a blue shape"]).T
    assert similar.shape == (1, 2)
    assert cli("train", "export", "judge", "--out", "exported").code == 0
    exported = Retriever.from_folder(folder / "exported")
    torch.testing.assert_close(exported.captions(["a"]), retriever.captions(["a"]), atol=1e-3, rtol=1e-2)


@pytest.mark.parametrize("kind", ["autoencoder", "diffusion", "clip"])
def test_printed_configs_are_complete_and_read_back(cli: Cli, folder: Path, kind: str) -> None:
    """Every option has a line that says what it is."""
    for preset in ("v1", "small"):
        outcome = cli("train", kind, "--print-config", preset)
        options = [i for i, line in enumerate(outcome.lines) if " = " in line and not line.startswith("#")]
        assert len(options) > 30
        assert [outcome.lines[i] for i in options if not outcome.lines[i - 1].startswith("# ")] == []
        (folder / "printed.toml").write_text(outcome.out)
        words = () if kind != "clip" or preset == "v1" else ("--tokenizer", "pocket")
        assert cli("train", kind, "printed.toml", "--dry-run", "--images-per-second", "10", *words).code == 0
    assert cli("train", kind, "--print-config", "large").errors[0].startswith("sfumato: ")


def bad_shards(folder: Path, content: bytes) -> None:
    folder.mkdir()
    (folder / "a.tar").write_bytes(content)


def test_bad_data_is_one_line_that_says_what_is_wrong(cli: Cli, folder: Path, made: Path) -> None:
    config = str(made / "autoencoder.toml")

    def refused(data: str) -> str:
        outcome = cli("train", "autoencoder", config, "--data", data, "--out", "run", *CPU)
        assert outcome.code in (1, 2)
        assert len(outcome.errors) == 1
        return outcome.errors[0]

    assert "is no folder" in refused("nowhere")
    (folder / "empty").mkdir()
    assert "holds no pictures" in refused("empty")
    write_pictures(folder / "silent", 3)
    (folder / "silent" / "01.txt").unlink()
    assert "01.png has no caption" in refused("silent")
    write_pictures(folder / "blank", 2)
    (folder / "blank" / "01.txt").write_text(" \n")
    assert "01.txt is empty" in refused("blank")
    write_pictures(folder / "broken", 2)
    (folder / "broken" / "00.png").write_bytes(b"\x89PNG\r\n\x1a\n but no more")
    assert "00.png" in refused("broken")
    bad_shards(folder / "nothing", write_tar(folder / "x.tar", []).read_bytes())
    assert "holds no sample" in refused("nothing")
    whole = write_tar(folder / "x.tar", [("a.png", (made / "pictures" / "00.png").read_bytes()), ("a.txt", b"red")])
    bad_shards(folder / "cut", whole.read_bytes()[:700])
    assert "make or download it again" in refused("cut")
    bad_shards(folder / "zero", b"")
    assert "a.tar" in refused("zero")


def test_a_refused_run_leaves_no_config(cli: Cli, folder: Path, made: Path) -> None:
    """Its pictures are 24 pixels wide, which the first batch tells."""
    (folder / "wide.toml").write_text(AUTOENCODER.replace("crop = 16", "crop = 32"))
    outcome = cli("train", "autoencoder", "wide.toml", "--data", str(made / "pictures"), "--out", "run", *CPU)
    assert "smaller than crop = 32" in outcome.errors[0]
    assert not (folder / "run" / "config.toml").exists()


@pytest.mark.parametrize("out", ["x" * 300, "file/run", "/proc/run"])
def test_a_folder_that_cannot_be_made_is_one_plain_line(cli: Cli, folder: Path, made: Path, out: str) -> None:
    (folder / "file").write_text("")
    for words in (
        ("autoencoder", str(made / "autoencoder.toml")),
        ("diffusion", str(made / "diffusion.toml"), "--autoencoder", str(made / "ae"), "--tokenizer", "pocket"),
    ):
        outcome = cli("train", *words, "--data", str(made / "pictures"), "--out", out, *CPU)
        assert outcome.code == 1
        assert len(outcome.errors) == 1
        assert "could not be made" in outcome.errors[0]
    assert "--print-config" in cli("train", "autoencoder", "--data", str(made / "pictures"), "--out", out).errors[0]


def test_captions_missing_in_shards_are_found_before_training(cli: Cli, folder: Path, made: Path) -> None:
    pictures = [(f"{i}.png", (made / "pictures" / f"0{i}.png").read_bytes()) for i in range(3)]
    (folder / "shards").mkdir()
    write_tar(folder / "shards" / "a.tar", pictures)
    words = ("train", "diffusion", str(made / "diffusion.toml"), "--data", "shards", "--tokenizer", "pocket", *CPU)
    outcome = cli(*words, "--autoencoder", str(made / "ae"), "--out", "run")
    assert len(outcome.errors) == 1
    assert "has no caption" in outcome.errors[0]


def test_one_picture_is_enough_and_said_to_be_few(cli: Cli, folder: Path, made: Path) -> None:
    write_pictures(folder / "one", 1)
    outcome = cli("train", "autoencoder", str(made / "autoencoder.toml"), "--data", "one", "--out", "run", *CPU)
    assert outcome.code == 0
    assert outcome.err.splitlines()[0].startswith("warning: there are too few pictures to keep any from training")


def test_another_config_is_refused_and_nothing_lost(cli: Cli, folder: Path, made: Path) -> None:
    shutil.copytree(made / "ae", folder / "run")
    before = files_in(folder / "run")
    (folder / "other.toml").write_text(AUTOENCODER.replace("crop = 16", "crop = 8"))
    outcome = cli("train", "autoencoder", "other.toml", "--data", str(made / "pictures"), "--out", "run", *CPU)
    assert outcome.code == 2
    assert "another crop" in outcome.errors[0]
    assert files_in(folder / "run") == before
    (folder / "other.toml").write_text(AUTOENCODER.replace("crop = 16", "corp = 16"))
    outcome = cli("train", "autoencoder", "other.toml", "--data", str(made / "pictures"), "--out", "run", *CPU)
    assert "'corp' is no option" in outcome.errors[0]
    diffusion = ("train", "diffusion", "--data", str(made / "pictures"), "--out", str(made / "painter"), *CPU)
    (folder / "scaled.toml").write_text(AUTOENCODER.replace("[model]", "[model]\nscaling_factor = 0.5"))
    assert cli("train", "autoencoder", "scaled.toml", "--data", str(made / "pictures"), "--out", "s", *CPU).code == 0
    assert "scaling_factor" in cli(*diffusion, "--autoencoder", "s").errors[0]
    (folder / "again.toml").write_text(AUTOENCODER.replace("first_logvar = -6.0", "first_logvar = -5.0"))
    assert cli("train", "autoencoder", "again.toml", "--data", str(made / "pictures"), "--out", "again", *CPU).code == 0
    assert "another autoencoder" in cli(*diffusion, "--autoencoder", "again").errors[0]
    assert "another tokenizer" in cli(*diffusion, "--tokenizer", str(V1 / "tokenizer")).errors[0]


def test_numbers_that_run_away_stop_it_with_the_batch(cli: Cli, folder: Path, made: Path) -> None:
    wild = AUTOENCODER.replace("[model]", "[run.optimizer]\nlearning_rate = 1e38\n[model]").replace(
        "steps = 4", "steps = 40"
    )
    (folder / "wild.toml").write_text(wild)
    outcome = cli("train", "autoencoder", "wild.toml", "--data", str(made / "pictures"), "--out", "run", *CPU)
    assert outcome.code == 1
    assert len(outcome.errors) == 1
    assert "with the batch in run/bad-batch-" in outcome.errors[0]
    assert list((folder / "run" / "checkpoints").iterdir())


def test_what_is_missing_is_said(cli: Cli, made: Path) -> None:
    assert "--print-config" in cli("train", "autoencoder", "--out", "none").errors[0]
    assert "--data" in cli("train", "autoencoder", str(made / "autoencoder.toml")).errors[0]
    words = ("train", "diffusion", str(made / "diffusion.toml"), "--data", str(made / "pictures"), *CPU)
    assert "--autoencoder" in cli(*words, "--out", "none").errors[0]
    wrong = cli(*words, "--out", "none", "--autoencoder", str(made / "ae"), "--tokenizer", "nowhere")
    assert len(wrong.errors) == 1
    large = cli(*words, "--out", "none", "--autoencoder", str(made / "ae"))
    assert "text_encoder.vocab_size" in large.errors[0]


def test_a_recipe_is_shown_and_runs_as_a_graph(cli: Cli, made: Path) -> None:
    outcome = cli("train", "recipe", "v1-4", "--json")
    stages = json.loads(outcome.out)["stages"]
    assert [(stage["stage"], stage["from"]) for stage in stages] == [
        ("v1-1-256", None), ("v1-1", "v1-1-256"), ("v1-2", "v1-1"), ("v1-4", "v1-2"),
    ]  # fmt: skip
    assert "485,376,000" in cli("train", "recipe", "v1-1").out
    assert "autoencoder-whole" in cli("train", "recipe", "pocket").out
    no_data = cli("train", "recipe", "v1-1", "--stage", "v1-1-256")
    assert "laion2B-en" in no_data.errors[0]
    no_stage = cli("train", "recipe", "v1-1", "--stage", "v1-1", "--data", str(made / "pictures"), "--out", "runs")
    assert "starts from v1-1-256" in no_stage.errors[0]
    assert cli("train", "recipe", "v1-9").code == 2
    outcome = cli(
        "train", "recipe", "pocket", "--stage", "all", "--data", "emoji", "--out", "p", "--minutes", "0", *CPU
    )
    assert (outcome.code, outcome.lines) == (0, ["p"])
    assert "the time is over before the end" in outcome.err
    without = cli("train", "recipe", "pocket", "--stage", "all", "--out", "p")
    assert (without.code, len(without.errors)) == (2, 1)
    assert "--data" in without.errors[0]


def test_a_stop_while_pictures_are_encoded_says_how_to_go_on(
    cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    emoji_set(folder / "emoji", styles=("twemoji",))
    original = pocket.encode_moments

    def interrupted(*arguments: Any, cancellation: Cancellation, **options: Any) -> object:
        cancellation.cancel()  # as Ctrl-C does: a signal would end a test runner that works in another thread
        return original(*arguments, cancellation=cancellation, **options)

    monkeypatch.setattr(pocket, "encode_moments", interrupted)
    words = ("--stage", "scenes", "--data", "emoji", "--out", "later")
    outcome = cli("train", "recipe", "pocket", *words, "--start", "pocket", *CPU)
    assert outcome.code == 130
    again = "sfumato train recipe pocket --stage scenes --data emoji --out later"
    assert outcome.err.splitlines() == [f"sfumato: stopped before the end; go on with: {again}"]


def test_an_autoencoder_with_its_pictures_on_the_device_is_finished(cli: Cli, made: Path) -> None:
    """Mean and deviation of the latents are measured on pictures read one by one, at random squares of them."""
    Path("resident.toml").write_text(AUTOENCODER.replace("[run]", "[run]\nresident = true"))
    done = cli("train", "autoencoder", "resident.toml", "--data", str(made / "pictures"), "--out", "resident", *CPU)
    assert done.code == 0, done.err
    assert load_file("resident/model/diffusion_pytorch_model.safetensors").keys() == (
        load_file(made / "ae" / "model" / "diffusion_pytorch_model.safetensors").keys()
    )


@pytest.mark.parametrize("kind", ["autoencoder", "diffusion"])
def test_a_dry_run_needs_no_data_to_be_resident(cli: Cli, kind: str) -> None:
    config = {"autoencoder": AUTOENCODER, "diffusion": DIFFUSION}[kind]
    Path("resident.toml").write_text(config.replace("[run]", "[run]\nresident = true"))
    document = json.loads(cli("train", kind, "resident.toml", "--dry-run", "--json", *CPU).out)
    assert document["images_per_second"] > 0.0
    assert document["memory"]["activations"] > 0


def test_a_recipe_dry_run_has_the_published_anchors(cli: Cli) -> None:
    """At MosaicML's rates of eight A100s: 485 M pictures at 1,100/s, 1,913 M at 290/s, 8 device hours an hour."""
    words = ("train", "recipe", "v1-4", "--dry-run", "--price", "2", "--hardware", "A100 PCIe 40GB")
    document = json.loads(cli(*words, "--intensity", "0.3", "--json").out)
    hours = 8 * (237_000 * 2048 / 1100 + (194_000 + 515_000 + 225_000) * 2048 / 290) / 3600
    assert document["device_hours"] == pytest.approx(hours)
    assert document["cost"] == pytest.approx(2 * hours)
    assert document["emissions"]["kg_co2eq"] == pytest.approx(hours * 0.25 * 0.3)
    shown = cli(*words, "--intensity", "0.3").out
    assert "15,6" in shown
    assert "150,000 A100 hours" in shown


def test_a_dry_run_counts_parameters_and_memory(cli: Cli, made: Path) -> None:
    words = ("train", "diffusion", str(made / "diffusion.toml"), "--dry-run", "--json", *CPU)
    document = json.loads(cli(*words, "--images-per-second", "8", "--price", "3", "--devices", "2").out)
    pipeline = sfumato.load_pipeline(str(made / "painter" / "model"), safety="off")
    parts = {"unet": pipeline.model.unet, "text_encoder": pipeline.model.text_encoder}
    assert document["parameters"] == {
        name: sum(parameter.numel() for parameter in part.parameters()) for name, part in parts.items()
    }
    total = sum(document["parameters"].values())
    memory = document["memory"]
    assert (memory["gradients"], memory["optimizer"]) == (4 * total, 8 * total)
    assert memory["total"] == sum(value for name, value in memory.items() if name != "total")
    assert document["device_hours"] == pytest.approx(4 * 2 / 8 / 3600)
    assert document["cost"] == pytest.approx(3 * document["device_hours"])
    assert document["emissions"] is None
