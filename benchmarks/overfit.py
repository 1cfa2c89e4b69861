"""Eight pictures learned by heart: reconstructed above 30 dB, and each drawn from its caption, by the command line."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

import sfumato
from sfumato.cli.main import run

SIDE = 16
COLOURS = ("red", "blue", "green", "orange", "purple", "black", "teal", "pink")

AUTOENCODER = f"""
crop = {SIDE}
first_logvar = -10.0
[run]
steps = 600
batch = 8
ema_decay = 0.95
validate_every = 200
[run.optimizer]
learning_rate = 5e-3
betas = [0.9, 0.98]
warmup_steps = 20
schedule = "cosine"
[model]
block_channels = [16, 32]
layers_per_block = 1
norm_groups = 4
sample_size = {SIDE}
[loss]
edges = 0.0
kl = 1e-5
[data]
held_out = 0
"""

DIFFUSION = f"""
text_rate = 1.0
prompts = {json.dumps([f"a {colour} shape" for colour in COLOURS])}
[run]
steps = 800
batch = 16
ema_decay = 0.98
validate_every = 400
[run.optimizer]
learning_rate = 2e-3
betas = [0.9, 0.98]
warmup_steps = 20
schedule = "cosine"
[noise]
weighting = "high_noise"
density = 0.5
stratified = true
[unet]
block_channels = [32, 64]
attention = [true, true]
layers_per_block = 1
heads = [2, 4]
depth = [1, 1]
context_dim = 32
norm_groups = 8
sample_size = {SIDE // 2}
[text_encoder]
vocab_size = 4000
positions = 77
width = 32
hidden = 64
layers = 1
heads = 2
[data]
held_out = 0
"""


def draw(folder: Path) -> list[Image.Image]:
    """Discs and squares of eight colours, with captions."""
    pictures = []
    for index, colour in enumerate(COLOURS):
        picture = Image.new("RGB", (SIDE, SIDE), "white")
        corner = SIDE // 8 + index % 3
        box = (corner, corner, corner + SIDE // 2, corner + SIDE // 2)
        (ImageDraw.Draw(picture).ellipse if index % 2 else ImageDraw.Draw(picture).rectangle)(box, colour)
        picture.save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text(f"a {colour} shape\n")
        pictures.append(picture)
    return pictures


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "pictures").mkdir()
        pictures = np.stack([np.asarray(picture, np.float64) for picture in draw(folder / "pictures")])
        (folder / "autoencoder.toml").write_text(AUTOENCODER)
        (folder / "diffusion.toml").write_text(DIFFUSION)
        started = time.process_time()
        options = ("--data", str(folder / "pictures"), "--device", "cpu", "--threads", "1")
        train("autoencoder", folder / "autoencoder.toml", *options, "--out", str(folder / "autoencoder"))
        lines = [json.loads(line) for line in (folder / "autoencoder" / "metrics.jsonl").read_text().splitlines()]
        found = [line["validation_psnr"] for line in lines if "validation_psnr" in line][-1]
        print(f"autoencoder: {found:.1f} dB, {time.process_time() - started:.0f} s of processor time", flush=True)
        started = time.process_time()
        parts = ("--autoencoder", str(folder / "autoencoder"), "--tokenizer", "pocket")
        train("diffusion", folder / "diffusion.toml", *options, *parts, "--out", str(folder / "painter"))
        pipeline = sfumato.load_pipeline(str(folder / "painter" / "model"), safety="off", watermark=False)
        right = 0
        for index, colour in enumerate(COLOURS):
            image = pipeline.generate(f"a {colour} shape", steps=25, guidance_scale=2.0).images[0]
            errors = np.square(pictures - np.asarray(image, np.float64)).mean(axis=(1, 2, 3))
            right += int(errors.argmin() == index)
            print(
                f"a {colour} shape: {10 * np.log10(255**2 / errors[index]):.1f} dB, nearest is number {errors.argmin()}"
            )
        print(f"{right} of {len(COLOURS)} drawn from their captions, {time.process_time() - started:.0f} s", flush=True)


def train(*arguments: object) -> None:
    code = run(["train", *map(str, arguments)])
    if code:
        raise SystemExit(code)


if __name__ == "__main__":
    main()
