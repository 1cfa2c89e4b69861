"""Pictures encoded once: the moments are the autoencoder's own, and stay with their captions whatever happens."""

from __future__ import annotations

import dataclasses
import errno
import os
import random
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from PIL import Image

from sfumato.data.moments import open_moments, part_path
from sfumato.data.samples import Dataset, Sample
from sfumato.data.transforms import Preparation
from sfumato.errors import (
    Cancelled,
    CheckpointError,
    DataError,
    InvalidRequest,
    MissingExtra,
    NumericalError,
    OutputError,
)
from sfumato.modelfiles.open_model import V1
from sfumato.models.autoencoder import Autoencoder
from sfumato.pocket.dataset.scenes import SceneSet
from sfumato.progress import Cancellation, Progress
from sfumato.prompt.tokenizer import Tokenizer
from sfumato.train.encoding.encode_dataset import Encoding, encode_moments, encoder_hash, moments_spec
from sfumato.train.encoding.encode_on_ray import PartWriter, encode_on_ray
from sfumato.train.inputs.encoded_latents import open_latents
from sfumato.train.run_config import RunConfig
from sfumato.train.runs.autoencoders import autoencoder_of_run
from sfumato.train.tasks.autoencoder_task import AutoencoderLoss, AutoencoderTask, AutoencoderTraining
from sfumato.train.trainer import train
from support.made_data import Pictures, emoji_set, noise
from support.train_pictures import SQUARE, TINY, Shapes, autoencoder, encoded


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def mixed(count: int) -> Pictures:
    """Pictures of every shape, with and without transparency, with one to three captions."""
    samples = [
        Sample(
            key=f"ключ/{i}",
            captions=tuple(f"number {i}, said in way {j} — “{'é' * j}”" for j in range(1 + i % 3)),
            fields={},
            picture=noise(12 + i % 9, 30 - i % 7, i, 3 + i % 2),
        )
        for i in range(count)
    ]
    return Pictures(samples)


def test_every_sample_has_the_autoencoders_moments_and_its_own_captions(tmp_path: Path) -> None:
    source, network = mixed(27), autoencoder()
    encoded(source, tmp_path / "latents")
    latents = open_latents(tmp_path / "latents", network)
    assert len(latents) == 27
    assert [path.name for path in sorted((tmp_path / "latents").glob("moments*"))] == [
        f"moments-{i:05d}.safetensors" for i in range(3)
    ]
    for index in random.Random(0).sample(range(27), 27):
        sample = source.sample(index)
        white = Image.new("RGBA", sample.picture.size, "white")
        white.alpha_composite(sample.picture.convert("RGBA"))
        pixels = torch.tensor(SQUARE(white.convert("RGB")).tolist()).permute(2, 0, 1)[None]
        with torch.no_grad():
            posterior = network.encode(pixels / 127.5 - 1.0)
        read = latents.latents(index)
        assert read.captions == sample.captions
        assert latents.moments.record(index).key == sample.key
        assert read.mean.dtype == torch.float16
        torch.testing.assert_close(read.mean.float(), posterior.mean[0], atol=1e-5, rtol=1e-3)  # half a step of float16
        torch.testing.assert_close(read.logvar.float(), posterior.logvar[0], atol=1e-5, rtol=1e-3)
    with pytest.raises(IndexError, match="sample 27 of 27"):
        latents.latents(27)


def test_composed_scenes_of_any_number(tmp_path: Path) -> None:
    emoji = emoji_set(tmp_path / "emoji")
    scenes = SceneSet(emoji=emoji, subjects=emoji.subjects, seed=4, length=6)
    moments = encoded(scenes, tmp_path / "latents", preparation=Preparation(width=32, height=24))
    assert [moments.record(i).captions for i in range(6)] == [scenes.record(i).captions for i in range(6)]
    part, row = moments.locate(5)
    assert part.moments(row)[0].shape == (4, 12, 16)


def test_threads_and_batches_change_nothing_but_last_bits(tmp_path: Path) -> None:
    source = mixed(23)
    encoded(source, tmp_path / "a")
    encoded(source, tmp_path / "b", workers=3)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    whole = encoded(source, tmp_path / "c", batch=23, samples_per_part=100)
    parts = open_moments(tmp_path / "a")
    for index in range(23):
        (one, row), (other, place) = whole.locate(index), parts.locate(index)
        torch.testing.assert_close(one.moments(row)[0], other.moments(place)[0], atol=2e-4, rtol=2e-3)
    rough = encoded(source, tmp_path / "d", precision="bfloat16")
    assert not torch.equal(rough.locate(3)[0].moments(3)[0], parts.locate(3)[0].moments(3)[0])
    torch.testing.assert_close(rough.locate(3)[0].moments(3)[0], parts.locate(3)[0].moments(3)[0], atol=0.05, rtol=0.05)
    with ThreadPoolExecutor(8) as pool:
        captions = list(pool.map(lambda i: parts.record(i % 23).captions, range(230)))
    assert captions == [source.record(i % 23).captions for i in range(230)]


def test_token_ids_are_those_of_the_captions(tmp_path: Path) -> None:
    source, tokenizer = mixed(5), Tokenizer.from_folder(V1 / "tokenizer")
    moments = encoded(source, tmp_path / "latents", tokenizer=tokenizer)
    part, row = moments.locate(2)
    tokens = part.tokens(row)
    assert tokens is not None and tokens.shape == (3, 77)
    for ids, caption in zip(tokens.tolist(), source.record(2).captions, strict=True):
        text = [tokenizer.bos_id, *tokenizer.encode(caption).ids, tokenizer.eos_id]
        assert ids[: len(text)] == text and set(ids[len(text) :]) <= {tokenizer.pad_id}
    assert encoded(source, tmp_path / "without").locate(2)[0].tokens(2) is None


def test_stopped_anywhere_it_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    source = mixed(27)
    encoded(source, tmp_path / "whole")
    for stop_after, kept in ((1, 0), (11, 10), (20, 10), (25, 20)):
        folder, cancellation = tmp_path / f"stopped-{stop_after}", Cancellation()

        def stop(event: Progress, limit: int = stop_after, flag: Cancellation = cancellation) -> None:
            if event.step >= limit:
                flag.cancel()

        with pytest.raises(Cancelled):
            encoded(source, folder, on_progress=stop, cancellation=cancellation)
        with pytest.raises(DataError, match=r"has no manifest\.json.*wasn't finished"):
            open_moments(folder)
        done: list[int] = []
        encoded(source, folder, on_progress=lambda event, done=done: done.append(event.step))
        assert done[0] == kept
        assert contents(folder) == contents(tmp_path / "whole")
    before = contents(tmp_path / "whole")
    encoded(source, tmp_path / "whole", on_progress=lambda event: done.append(event.step))
    assert done[-1] == 27 and contents(tmp_path / "whole") == before


KILLED = """
import sys
from pathlib import Path
import torch
from support.train_pictures import Shapes, encoded
torch.set_num_threads(int(sys.argv[2]))
encoded(Shapes(1500, 16), Path(sys.argv[1]), batch=16, samples_per_part=200)
"""


def test_killed_it_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path / "a"), str(torch.get_num_threads())],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    while not part_path(tmp_path / "a", 1).exists():
        assert child.poll() is None
        time.sleep(0.01)
    child.kill()
    child.wait()
    assert not (tmp_path / "a" / "manifest.json").exists()
    source = Shapes(1500, 16)
    for name in "ab":
        encoded(source, tmp_path / name, batch=16, samples_per_part=200)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


@pytest.mark.parametrize("name", ["autoencoder", "preparation", "batch", "precision", "samples_per_part", "samples"])
def test_another_way_to_encode_is_refused(tmp_path: Path, name: str) -> None:
    source = mixed(12)
    encoded(source, tmp_path)
    if name == "samples":
        with pytest.raises(InvalidRequest, match="samples 12, not 11: give another folder"):
            encoded(mixed(11), tmp_path)
    elif name == "autoencoder":
        other = autoencoder(1)
        with pytest.raises(InvalidRequest, match=f"autoencoder .*not {encoder_hash(other)}"):
            encode_moments(source, other, tmp_path, preparation=SQUARE, batch=4, samples_per_part=10)
        with pytest.raises(DataError, match="encoded with another autoencoder"):
            open_latents(tmp_path, other)
    else:
        changed = {
            "preparation": Preparation(width=16, height=16, kernel="area"),
            "batch": 5,
            "precision": "bfloat16",
            "samples_per_part": 6,
        }
        with pytest.raises(InvalidRequest, match=f"was made with {name} "):
            encoded(source, tmp_path, **{name: changed[name]})
    with pytest.raises(DataError, match="another preparation"):
        open_latents(tmp_path, autoencoder(), Preparation(width=16, height=24))
    assert len(open_latents(tmp_path, autoencoder(), SQUARE)) == 12


@pytest.mark.parametrize("change", ["caption", "picture", "key"])
def test_other_samples_are_refused(tmp_path: Path, change: str) -> None:
    source = mixed(12)
    encoded(source, tmp_path)
    sample = source.samples[11]
    changes = {"caption": {"captions": ("a cat",)}, "picture": {"picture": noise(20, 20, 99)}, "key": {"key": "other"}}
    other = Pictures([*source.samples[:11], dataclasses.replace(sample, **changes[change])])
    with pytest.raises(DataError, match="made from other samples: its number 1 was 'ключ/11'"):
        encoded(other, tmp_path)


def test_the_hash_is_the_encoders_alone() -> None:
    network = autoencoder()
    before = encoder_hash(network)
    with torch.no_grad():
        next(iter(network.decoder.parameters())).add_(1.0)
    assert encoder_hash(network) == before == encoder_hash(network.double())
    with torch.no_grad():
        network.quant_conv.bias[3] += 0.5
    assert encoder_hash(network) != before
    assert encoder_hash(Autoencoder(dataclasses.replace(TINY, norm_groups=2))) != before


def test_the_averaged_weights_of_a_run_are_an_autoencoder(tmp_path: Path) -> None:
    loss = AutoencoderLoss(adversarial=0.5, adversarial_from=0, adversarial_channels=4, learned_scale=True)
    config = AutoencoderTraining(crop=32, model=TINY, loss=loss, run=RunConfig(steps=3, batch=2, validate_every=0))
    average = train(AutoencoderTask(config, Shapes(8, 32)), config, tmp_path).state.ema.module.autoencoder
    assert encoder_hash(autoencoder_of_run(tmp_path)) == encoder_hash(average)
    for name in "ab":  # how the weights lie in memory decides last bits, and mustn't
        network = average if name == "a" else autoencoder_of_run(tmp_path)
        encode_moments(mixed(5), network, tmp_path / name, preparation=SQUARE)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    text = (tmp_path / "config.toml").read_text()
    (tmp_path / "config.toml").write_text(text.replace("block_channels = [8, 16]", "block_channels = [8, 8]"))
    with pytest.raises(CheckpointError, match=r"don't fit the autoencoder of its config\.toml"):
        autoencoder_of_run(tmp_path)


def test_what_cannot_be_encoded_is_said_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the data set is empty"):
        encoded(Pictures([]), tmp_path)
    with pytest.raises(InvalidRequest, match="15×16 pixels: this autoencoder needs multiples of 2"):
        encoded(mixed(3), tmp_path, preparation=Preparation(width=15, height=16))
    wordless = Pictures([dataclasses.replace(mixed(1).samples[0], captions=())])
    with pytest.raises(DataError, match="'ключ/0' has no caption"):
        encoded(wordless, tmp_path)
    assert encoded(wordless, tmp_path / "allowed", captions_required=False).record(0).captions == ()
    broken = autoencoder()
    with torch.no_grad():
        broken.encoder.conv_in.bias[0] = float("nan")
    with pytest.raises(NumericalError, match="'ключ/0': its moments are not finite"):
        encode_moments(mixed(3), broken, tmp_path, preparation=SQUARE)
    assert [path.name for path in tmp_path.glob("moments*")] == []


def test_a_full_disk_leaves_whole_parts_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = mixed(27)

    def full(descriptor: int) -> None:
        if part_path(tmp_path / "a", 0).exists():
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(OutputError, match="disk is full"):
            encoded(source, tmp_path / "a")
    assert [path.name for path in (tmp_path / "a").iterdir() if path.name != ".lock"] == ["moments-00000.safetensors"]
    for name in "ab":
        encoded(source, tmp_path / name)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_a_damaged_part_is_noticed_and_made_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = mixed(27)
    encoded(source, tmp_path)
    before, path = contents(tmp_path), part_path(tmp_path, 1)
    for size in (0, 5, 100, 3000, len(before[path.name]) - 1):
        path.write_bytes(before[path.name][:size])
        with pytest.raises(DataError, match=f"has {size} bytes, not"):
            open_moments(tmp_path)
        encoded(source, tmp_path)
        assert contents(tmp_path) == before
    assert len(caplog.messages) == 5 and "encode them again" in caplog.messages[0]
    middle = len(before[path.name]) // 2
    path.write_bytes(before[path.name][:middle] + b"\x55" + before[path.name][middle + 1 :])
    assert open_moments(tmp_path).problems() == [
        f"{path} has changed since it was made (SHA-256): copy or encode it again"
    ]


def test_a_worker_of_a_cluster_makes_the_same_bytes_and_hands_errors_over(tmp_path: Path) -> None:
    source, network = mixed(27), autoencoder()
    encoded(source, tmp_path / "here")
    spec = moments_spec(
        source,
        network,
        preparation=SQUARE,
        batch=4,
        precision="float32",
        samples_per_part=10,
        tokenizer=None,
    )

    def worker(dataset: Dataset) -> PartWriter:
        encoding = Encoding(dataset=dataset, spec=spec, tokenizer=None, captions_required=True)
        return PartWriter(encoding, network, str(tmp_path / "there"), "cpu", torch.get_num_threads(), 1)

    (tmp_path / "there").mkdir()
    made = [worker(source)({"part": [number]}) for number in (2, 0, 1)]
    assert [row["samples"] for row in made] == [[7], [10], [10]] and {row["error"][0] for row in made} == {""}
    for name, data in contents(tmp_path / "there").items():
        assert data == contents(tmp_path / "here")[name]
    wordless = Pictures([dataclasses.replace(sample, captions=()) for sample in source.samples])
    row = worker(wordless)({"part": [0]})
    assert row["error"] == ["DataError"] and "has no caption" in row["message"][0]


def test_without_ray_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtra, match=r"sfumato\[ray\]"):
        encoded(mixed(3), tmp_path, write=encode_on_ray(actors=1))
