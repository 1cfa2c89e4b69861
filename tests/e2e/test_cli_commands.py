"""Every command but `generate`, with the embedded model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile, PngImagePlugin
from safetensors.torch import load_file, save_file

import sfumato
from sfumato.diffusion.sampler_info import SAMPLERS
from sfumato.pipeline.provenance import Provenance
from sfumato.safety.verdict import Verdict, judge
from support.command_line import Cli, files_in

QUICK = ("--steps", "2")


def edited(path: Path, to: Path, *, pixel: tuple[int, int, int] | None = None, **changes: object) -> None:
    """A copy of a PNG with one pixel or fields of its record changed."""
    with Image.open(path) as picture:
        record = json.loads(picture.text["sfumato"]) | changes
        info = PngImagePlugin.PngInfo()
        info.add_itxt("sfumato", json.dumps(record))
        if pixel is not None:
            picture.putpixel((3, 3), pixel)
        picture.save(to, pnginfo=info)


def test_grid_makes_one_labelled_sheet_of_the_pictures_that_generate_makes(cli: Cli, folder: Path) -> None:
    command = ["grid", "cat face", "--x", "sampler=plms,euler,ddim", "--y", "seed=1,2", "--out", "grid.png", *QUICK]
    assert cli(*command).lines == ["grid.png"]
    cli("generate", "cat face", "--seed", "2", "--sampler", "euler", "--out", "one.png", *QUICK)
    sheet = np.asarray(Image.open("grid.png").convert("RGB"))
    factor = 2  # 128 pixels enlarged to make room for labels
    one = np.asarray(Image.open("one.png")).repeat(factor, 0).repeat(factor, 1)
    row, column = np.unravel_index(one.sum(axis=2).argmin(), one.shape[:2])  # where it is darkest: a rare colour
    darkest = np.argwhere((sheet == one[row, column]).all(axis=2)) - (row, column)
    places = [(y, x) for y, x in darkest if np.array_equal(sheet[y : y + one.shape[0], x : x + one.shape[1]], one)]
    assert len(places) == 1  # lower row, middle column
    y, x = places[0]
    assert y > sheet.shape[0] / 2 and x < sheet.shape[1] / 2 + one.shape[1] / 2 < x + one.shape[1] * 1.5
    document = json.loads(cli(*command[:-4], "--out", "again", "--json", *QUICK).out)
    assert [[(r["sampler"], r["seed"]) for r in row] for row in document["rows"]] == [
        [("plms", 1), ("euler", 1), ("ddim", 1)],
        [("plms", 2), ("euler", 2), ("ddim", 2)],
    ]
    assert files_in(folder) == ["again/00001-1-sheet.png", "grid.png", "one.png"]


@pytest.mark.parametrize("suffix", ["gif", "webp"])
def test_interpolate_makes_a_moving_picture(cli: Cli, suffix: str) -> None:
    outcome = cli("interpolate", "red heart", "blue heart", "--frames", "3", "--out", f"walk.{suffix}", *QUICK)
    assert outcome.lines == [f"walk.{suffix}"]
    with Image.open(f"walk.{suffix}") as walk:
        assert (walk.n_frames, walk.size) == (3, (128, 128))
    again = cli("interpolate", "red heart", "blue heart", "--frames", "3", "--out", f"walk.{suffix}", *QUICK)
    assert again.code == 1 and "already exists" in again.err
    huge = cli("interpolate", "a", "b", "--frames", "10000", "--width", "2048", "--out", "huge.gif", *QUICK)
    assert huge.code == 2 and "10000 frames of 2048×128 don't fit a .gif: at most 1024 do" in huge.errors[0]
    numbered = cli("interpolate", "a", "b", "--frames", "2", "--out", "walks", "--json", *QUICK)
    assert json.loads(numbered.out)["path"] == "walks/00001-0-a-to-b.webp"


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp"])
def test_replay_says_identical(cli: Cli, name: str) -> None:
    cli("generate", "a red heart", "--seed", "3", "--sampler", "euler_ancestral", "--out", name, *QUICK)
    outcome = cli("replay", name)
    assert outcome.code == 0 and outcome.out.startswith(f"{name}: identical")
    document = json.loads(cli("replay", name, "--json").out)
    assert document["identical"] is True and document["differences"] == {}


def test_replay_says_what_differs(cli: Cli) -> None:
    cli("generate", "a red heart", "--out", "a.png", *QUICK)
    record = Provenance.from_json(Image.open("a.png").text["sfumato"])
    edited(Path("a.png"), Path("touched.png"), pixel=(1, 2, 3))
    touched = cli("replay", "touched.png")
    assert touched.code == 1 and "the file was changed since it was made, PSNR " in touched.out
    seed = record.request.to_dict() | {"seed": 1}
    edited(Path("a.png"), Path("other.png"), request=seed, torch="1.0", model_sha256="0" * 64, threads=1)
    other = cli("replay", "other.png", "--out", "new.png")
    assert other.code == 1 and "other.png: different, PSNR " in other.lines[0] and other.lines[-1] == "new.png"
    assert f"  torch was 1.0, is {record.torch}" in other.lines
    assert f"  model_sha256 was {'0' * 64}, is {record.model_sha256}" in other.lines
    document = json.loads(cli("replay", "other.png", "--json").out)
    expected = np.asarray(Image.open("a.png")).astype(float), np.asarray(Image.open("new.png")).astype(float)
    error = np.mean((expected[0] - expected[1]) ** 2)
    assert document["psnr"] == pytest.approx(10 * np.log10(255**2 / error))
    assert document["differences"]["torch"] == {"then": "1.0", "now": record.torch}
    cli("generate", "a red heart", "--out", "b.png", "--sheet", *QUICK)
    sheet = cli("replay", "b-sheet.png")
    assert sheet.code == 2 and "its record asks for 128×128: a sheet" in sheet.errors[0]


def test_replay_hides_again_what_the_policy_hid(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def flag_all(images: Sequence[Image.Image]) -> list[Verdict]:
        return [judge("test", {"all": 1.0}, ("all",)) for _ in images]

    monkeypatch.setattr("sfumato.safety.policy.OpenNsfwChecker", lambda: flag_all)
    cli("generate", "a red heart", "--safety", "block", "--out", "a.png", *QUICK)
    assert not np.asarray(Image.open("a.png")).any()
    assert cli("replay", "a.png").out == "a.png: identical\n"


def test_replay_is_not_fooled(cli: Cli) -> None:
    cli("generate", "a red heart", "--out", "a.jpg", *QUICK)
    with Image.open("a.jpg") as picture:
        Image.new("RGB", picture.size, "green").save("green.jpg", xmp=picture.info["xmp"])
    repainted = cli("replay", "green.jpg")
    assert repainted.code == 1 and "the file was changed since it was made" in repainted.out
    cli("generate", "a red heart", "--out", "a.png", *QUICK)
    request = json.loads(Image.open("a.png").text["sfumato"])["request"]
    edited(Path("a.png"), Path("huge.png"), request=request | {"width": 8192, "height": 8192, "steps": 1000})
    endless = cli("replay", "huge.png")
    assert endless.code == 2 and "has 128×128 pixels, its record asks for 8192×8192" in endless.errors[0]
    edited(Path("a.png"), Path("small.png"), width=5, height=7)
    assert cli("replay", "small.png").code == 2
    edited(Path("a.png"), Path("other.png"), request=request | {"prompt": "rocket"})
    assert "its record was changed" in cli("replay", "other.png").out


def test_replay_needs_the_very_input_picture(cli: Cli, folder: Path) -> None:
    cli("generate", "a red heart", "--out", "start.png", *QUICK)
    cli("generate", "blue heart", "--init-image", str(folder / "start.png"), "--out", "end.png", *QUICK)
    assert cli("replay", "end.png").code == 0  # the record has its name only; it lies beside
    (folder / "start.png").rename(folder / "moved.png")
    missing = cli("replay", "end.png")
    assert missing.code == 2 and len(missing.errors) == 1 and "--init-image" in missing.err
    wrong = cli("replay", "end.png", "--init-image", "end.png")
    assert wrong.code == 2 and "end.png is another file than the one used" in wrong.err
    assert cli("replay", "end.png", "--init-image", "moved.png").out == "end.png: identical\n"


def test_replay_finds_a_model_that_moved(cli: Cli) -> None:
    assert cli("convert", "pocket", "mine.safetensors").lines == ["mine.safetensors"]
    cli("generate", "a red heart", "--model", "mine.safetensors", "--out", "a.png", *QUICK)
    Path("mine.safetensors").rename("other.safetensors")
    lost = cli("replay", "a.png")
    assert lost.code == 2 and "--model" in lost.errors[0]
    assert cli("replay", "a.png", "--model", "other.safetensors").code == 0


def test_replay_asks_where_another_vae_is(cli: Cli, folder: Path) -> None:
    assets = Path(sfumato.__file__).parent / "assets" / "pocket" / "vae"
    shutil.copytree(assets, folder / "vae")
    cli("generate", "a red heart", "--vae", str(folder / "vae"), "--out", "a.png", *QUICK)
    assert str(folder) not in Image.open("a.png").text["sfumato"]
    asked = cli("replay", "a.png")
    assert asked.code == 2 and "made with the VAE vae: say where it is now with --vae" in asked.errors[0]
    assert cli("replay", "a.png", "--vae", "vae").code == 0


def test_a_record_reaches_neither_the_hub_nor_a_path(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sfumato.modelfiles.hub.download", lambda *_, **__: pytest.fail("asked the Hub"))
    cli("generate", "a red heart", "--out", "a.png", *QUICK)
    record = json.loads(Image.open("a.png").text["sfumato"])
    for model in ("somebody/model", "/etc/passwd", "../pocket"):
        edited(Path("a.png"), Path("b.png"), request=record["request"] | {"model": model})
        outcome = cli("replay", "b.png")
        assert outcome.code == 2 and len(outcome.errors) == 1 and "--model" in outcome.errors[0]
        Path("b.png").unlink()


def test_inspect_a_picture_of_ours_and_of_another_program(cli: Cli) -> None:
    cli("generate", "a red heart", "--seed", "11", "--out", "a.jpg", *QUICK)
    outcome = cli("inspect", "a.jpg")
    assert outcome.code == 0 and "a red heart" in outcome.out and "11" in outcome.out
    document = json.loads(cli("inspect", "a.jpg", "--json").out)
    assert document["program"] == "sfumato" and document["settings"]["request"]["seed"] == 11
    info = PngImagePlugin.PngInfo()
    info.add_text(
        "parameters", "a cat\nNegative prompt: dog\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 8x8"
    )
    Image.new("RGB", (8, 8)).save("theirs.png", pnginfo=info)
    theirs = json.loads(cli("inspect", "theirs.png", "--json").out)
    assert theirs["settings"]["prompt"] == "a cat" and theirs["settings"]["negative_prompt"] == "dog"


def test_inspect_reads_comments(cli: Cli) -> None:
    """A GIF has no other place for text; most comments are about something else."""
    cli("interpolate", "red heart", "blue heart", "--frames", "2", "--seed", "5", "--out", "walk.gif", *QUICK)
    ours = json.loads(cli("inspect", "walk.gif", "--json").out)
    assert ours["program"] == "sfumato" and ours["settings"]["prompt"] == "red heart"
    assert (ours["settings"]["Seed"], ours["settings"]["Steps"]) == ("5", "2")
    theirs = "a cat\nNegative prompt: dog\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 8x8"
    for name in ("theirs.gif", "theirs.jpg"):
        Image.new("RGB", (8, 8)).save(name, comment=theirs.encode())
        found = json.loads(cli("inspect", name, "--json").out)
        assert (found["settings"]["prompt"], found["settings"]["negative_prompt"]) == ("a cat", "dog")
    Image.new("RGB", (8, 8)).save("plain.gif", comment=b"Created with GIMP \xff")
    assert json.loads(cli("inspect", "plain.gif", "--json").out)["program"] is None


def test_inspect_reads_a_picture_once(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (8, 8)).save("plain.png")
    opened: list[str] = []
    original = Path.open

    def counted(self: Path, *arguments: Any, **options: Any) -> Any:
        opened.append(self.name)
        return original(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", counted)
    document = json.loads(cli("inspect", "plain.png", "--json").out)
    assert document["program"] is None and opened.count("plain.png") == 1


def test_inspect_reads_what_a_large_picture_says_and_not_its_pixels(
    cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = PngImagePlugin.PngInfo()
    info.add(b"tEXt", b"parameters\0a cat\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1", after_idat=True)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    Image.new("L", (4096, 8192)).save("large.png", pnginfo=info, exif=exif)
    decoded: list[int] = []
    load = ImageFile.ImageFile.load
    monkeypatch.setattr(
        ImageFile.ImageFile, "load", lambda self: decoded.append(self.width * self.height) or load(self)
    )
    document = json.loads(cli("inspect", "large.png", "--json").out)
    assert (document["width"], document["height"]) == (8192, 4096)
    assert document["settings"]["prompt"] == "a cat"
    assert sum(decoded) <= 1


def test_inspect_of_what_is_no_model_is_one_line(cli: Cli, folder: Path) -> None:
    torch.save({"a": torch.zeros(2)}, "w.ckpt")
    outcome = cli("inspect", "w.ckpt")
    assert outcome.code == 1 and len(outcome.err.splitlines()) == 1


def test_inspect_and_convert_a_model(cli: Cli) -> None:
    embedded = json.loads(cli("inspect", "pocket", "--json").out)
    # From its README: millions of parameters, 128×128, float16.
    parts = {name: part["parameters"] for name, part in embedded["parts"].items()}
    assert {name: round(count / 1e6, 2) for name, count in parts.items()} == {
        "unet": 11.01,
        "vae": 2.73,
        "text_encoder": 2.12,
    }
    assert (embedded["layout"], embedded["size"], embedded["prediction"]) == ("diffusers", 128, "epsilon")
    assert cli("convert", "pocket", "one.safetensors").code == 0
    assert cli("convert", "one.safetensors", "back", "--dtype", "fp32").lines == ["back"]
    single = json.loads(cli("inspect", "one.safetensors", "--json").out)
    folder = json.loads(cli("models", "show", "./back", "--json").out)
    assert (single["layout"], folder["layout"]) == ("compvis", "diffusers")
    assert {name: part["parameters"] for name, part in folder["parts"].items()} == parts
    assert set(folder["parts"]["unet"]["dtypes"]) == {"float32"} and set(single["parts"]["unet"]["dtypes"]) == {
        "float16"
    }
    readable = cli("inspect", "pocket").out
    assert "11,008,132" in readable and embedded["sha256"] in readable


def test_inspect_shows_the_hash_that_pictures_record(cli: Cli, tmp_path: Path) -> None:
    """A safety checker's weights are the model's neighbours, not its own."""
    model = tmp_path / "model"
    shutil.copytree(Path(sfumato.__file__).parent / "assets" / "pocket", model)
    (model / "safety_checker").mkdir()
    (model / "safety_checker" / "model.safetensors").write_bytes(b"of a checker")
    made = sfumato.load_pipeline(model, device="cpu").generate("a", steps=1, width=32, height=32)
    recorded = made.provenance[0].model_sha256
    assert json.loads(cli("inspect", str(model), "--json").out)["sha256"] == recorded


def test_convert_writes_variants_and_shards(cli: Cli, folder: Path) -> None:
    assert cli("convert", "pocket", "half", "--variant", "fp16", "--max-shard-size", "10 MB").lines == ["half"]
    assert [file for file in files_in(folder) if "safetensors" in file] == [
        "half/text_encoder/model.fp16.safetensors",
        *(f"half/unet/diffusion_pytorch_model.fp16-0000{i}-of-00003.safetensors" for i in (1, 2, 3)),
        "half/unet/diffusion_pytorch_model.safetensors.index.fp16.json",
        "half/vae/diffusion_pytorch_model.fp16.safetensors",
    ]
    assert cli("convert", "./half", "again.safetensors").code == 0
    assert cli("convert", "pocket", "once.safetensors").code == 0
    assert (folder / "again.safetensors").read_bytes() == (folder / "once.safetensors").read_bytes()
    outcome = cli("generate", "cat", "--model", "./half", "--variant", "fp16", "--out", "a.png", *QUICK)
    assert outcome.lines == ["a.png"]
    cli("generate", "cat", "--out", "b.png", *QUICK)
    assert np.array_equal(np.asarray(Image.open("a.png")), np.asarray(Image.open("b.png")))
    mistaken = cli("inspect", "half")
    assert mistaken.code == 2 and "for the folder here, write ./half" in mistaken.errors[0]
    for size, says in (("big", "is no size: write it as 2GB"), ("0", "must be 1 or more")):
        wrong = cli("convert", "pocket", "other", "--max-shard-size", size)
        assert wrong.code == 2 and says in wrong.errors[0]


def test_convert_puts_another_vae_in(cli: Cli, folder: Path) -> None:
    assets = Path(sfumato.__file__).parent / "assets" / "pocket" / "vae"
    shutil.copytree(assets, folder / "vae")
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = {name: tensor + 1 for name, tensor in load_file(file).items()}
    file.unlink()
    save_file(tensors, file, metadata={"format": "pt"})
    assert cli("convert", "pocket", "other", "--vae", "vae").lines == ["other"]
    written = load_file(folder / "other" / "vae" / file.name)
    assert all(torch.equal(written[name], tensor) for name, tensor in tensors.items())


def test_models_are_added_verified_and_forgotten(cli: Cli, folder: Path) -> None:
    cli("convert", "pocket", "mine.safetensors")
    added = cli("models", "add", "mine.safetensors", "--name", "my-model")
    assert added.lines == [f"my-model: {folder / 'mine.safetensors'}"]
    listed = json.loads(cli("models", "list", "--json").out)
    assert {model["name"] for model in listed["models"]} == {"pocket", "my-model"}
    assert listed["can_be_pulled"]["v1-4"] == "CompVis/stable-diffusion-v1-4"
    assert "my-model" in cli("models", "list").out
    assert cli("generate", "cat", "--model", "my-model", *QUICK).code == 0
    assert cli("models", "verify", "my-model").out == "mine.safetensors: unchanged\n"
    data = bytearray((folder / "mine.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "mine.safetensors").write_bytes(data)
    changed = cli("models", "verify", "my-model", "--json")
    assert changed.code == 1 and json.loads(changed.out)["ok"] is False
    assert cli("models", "rm", "my-model").code == 0 and (folder / "mine.safetensors").exists()
    gone = cli("models", "show", "my-model")
    assert gone.code == 2 and "my-model" in gone.errors[0]


def test_explain_counts_calls_and_compares_profiles(cli: Cli) -> None:
    document = json.loads(cli("explain", "--sampler", "plms", "--steps", "7", "--json").out)
    steps = {profile["profile"]: (profile["steps"], profile["unet_calls"]) for profile in document["profiles"]}
    # CompVis' range(0, 1000, 1000 // 7) has 8 entries; PLMS calls the model once more than it has steps.
    assert (steps["diffusers"], steps["compvis"]) == ((7, 8), (8, 9))
    assert document["chosen"]["timesteps"] == [853, 711, 569, 427, 285, 143, 1]
    assert ["plms", "karras"] in [[pair["sampler"], pair["spacing"]] for pair in document["refused"]]
    text = cli("explain", "--sampler", "plms", "--steps", "7").out
    assert "853" in text and "Can't use" in text and "karras" in text
    stride = "7 steps become 8: the original lists every 142th timestep"
    assert document["chosen"]["notes"] == []
    assert [p["notes"] for p in document["profiles"] if p["profile"] == "compvis"] == [[stride]]
    assert f"Note: {stride}" in cli("explain", "--sampler", "plms", "--steps", "7", "--profile", "compvis").lines
    assert "…" in cli("explain", "--steps", "100").out
    assert "as many as the tolerances need" in cli("explain", "--sampler", "dpm_adaptive").out


def test_samplers_lists_all_of_them(cli: Cli) -> None:
    assert [info["name"] for info in json.loads(cli("samplers", "--json").out)["samplers"]] == list(SAMPLERS)
    text = cli("samplers").out
    assert all(name in text for name in SAMPLERS)


def test_every_command_explains_itself_in_a_few_panels(cli: Cli) -> None:
    overview = cli("--help")
    names = [
        "generate",
        "grid",
        "interpolate",
        "replay",
        "inspect",
        "explain",
        "samplers",
        "convert",
        "models",
        "card",
        "emissions",
        "evaluate",
        "train",
        "data",
        "serve",
    ]
    assert overview.code == 0 and all(name in overview.out for name in names)
    for name in names:
        outcome = cli(name, "--help")
        assert outcome.code == 0 and f"sfumato {name}" in outcome.out
    assert shutil.get_terminal_size().columns >= max(map(len, overview.lines))
    assert cli("--version").out.startswith("sfumato ")
