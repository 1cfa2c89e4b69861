"""Peak memory and time of each memory mode and tiling beside diffusers: v1-4's shapes, random half-precision weights.

Each run is a process of its own: load, one guided step (DDIM) and one decode, the whole process counted, torch
included. `peak` is the largest resident set; `anonymous` the largest part of it that no file backs, since pages of a
mapped file count as resident though the system may take them at any time. Seconds and processor seconds are of the
step and the decode. `python -m benchmarks.memory NAME…` runs only those; SFUMATO_BENCH_SIZE (512) is the picture's
side, SFUMATO_BENCH_ROUNDS (1) how often all take their turn, SFUMATO_BENCH_DIR keeps the model (2 GB) between runs.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

ROUNDS = int(os.environ.get("SFUMATO_BENCH_ROUNDS", "1"))
SIDE = int(os.environ.get("SFUMATO_BENCH_SIZE", "512"))
RUNS: Mapping[str, Mapping[str, str]] = {
    "auto": {"memory": "auto"},
    "lean": {"memory": "lean"},
    "low": {"memory": "low"},
    "auto-none": {"memory": "auto", "vae_tiling": "none"},
    "auto-exact": {"memory": "auto", "vae_tiling": "exact"},
    "auto-blend": {"memory": "auto", "vae_tiling": "blend"},
    "lean-blend": {"memory": "lean", "vae_tiling": "blend"},
    "eager-lean": {"memory": "lean", "engine": "eager"},
}
DEFAULT = ("diffusers", "auto", "lean", "low")


def write_model(folder: Path) -> None:
    """A diffusers folder of v1-4's shape, random weights in float16, a tensor at a time."""
    import torch

    from sfumato.json_files import read_object
    from sfumato.modelfiles.open_model import V1
    from sfumato.models import autoencoder, clip_text, unet
    from sfumato.models.unet_config import UNetConfig
    from sfumato.nn.empty import empty_modules
    from sfumato.weights.mapped_file import TensorInfo
    from sfumato.weights.mapper import written_entries
    from sfumato.weights.save import write_safetensors

    shutil.copytree(V1, folder, dirs_exist_ok=True)
    for extra in ("safety_checker", "feature_extractor"):
        shutil.rmtree(folder / extra)
    generator = torch.Generator().manual_seed(0)
    parts = (
        ("unet", unet.UNet, UNetConfig, unet.DIFFUSERS, "diffusion_pytorch_model"),
        (
            "vae",
            autoencoder.Autoencoder,
            autoencoder.AutoencoderConfig,
            autoencoder.DIFFUSERS,
            "diffusion_pytorch_model",
        ),
        ("text_encoder", clip_text.ClipText, clip_text.ClipTextConfig, clip_text.DIFFUSERS, "model"),
    )
    for name, module, config, layout, stem in parts:
        with empty_modules():
            entries = tuple(
                written_entries(module(config.from_published(read_object(folder / name / "config.json"))), layout)
            )
        shapes = {entry.theirs: entry.shape for entry in entries}

        def produce(tensor: str, shapes: dict[str, tuple[int, ...]] = shapes) -> torch.Tensor:
            numbers = torch.randn(shapes[tensor], generator=generator)
            if numbers.ndim == 1:
                return (numbers * 0.1 + float(tensor.endswith("weight"))).half()
            return (numbers * 0.7 * numbers[0].numel() ** -0.5).half()

        infos = {tensor: TensorInfo(dtype=torch.float16, shape=shape) for tensor, shape in shapes.items()}
        write_safetensors(folder / name / f"{stem}.safetensors", infos, produce)


def run_ours(folder: str, options: Mapping[str, str]) -> dict[str, object]:
    from sfumato.pipeline.load_pipeline import load_pipeline

    pipeline = load_pipeline(folder, safety="off", **options)
    marks: list[tuple[float, float]] = []

    def note(event: object) -> None:
        marks.append((time.perf_counter(), time.process_time()))

    made = pipeline.generate("a red fox", steps=1, sampler="ddim", width=SIDE, height=SIDE, on_progress=note)
    encoded, stepped, _, decoded = marks[-4:]  # events: encode, denoise 1, decode 0, decode 1
    return {**_seconds(encoded, stepped, decoded), "pixels": made.provenance[0].pixels_sha256[:12]}


def run_diffusers(folder: str, options: Mapping[str, str]) -> dict[str, object]:
    import torch
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(
        folder, safety_checker=None, feature_extractor=None, torch_dtype=torch.float32
    )
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    marks = [(time.perf_counter(), time.process_time())]

    def note(pipe: object, step: int, t: object, values: dict[str, object]) -> dict[str, object]:
        marks.append((time.perf_counter(), time.process_time()))
        return values

    pipeline("a red fox", num_inference_steps=1, width=SIDE, height=SIDE, callback_on_step_end=note)
    return _seconds(marks[0], marks[1], (time.perf_counter(), time.process_time()))


def _seconds(*moments: tuple[float, float]) -> dict[str, object]:
    """Wall clock and processor seconds of the step (diffusers': with the text encoder) and of the decode."""
    names = ("step", "decode")
    return {
        f"{name}{kind}": round(after[i] - before[i], 2)
        for name, before, after in zip(names, moments, moments[1:], strict=False)
        for i, kind in enumerate((" s", " cpu s"))
    }


def child(name: str, folder: str) -> None:
    """One run; its figures as a line of JSON."""
    peak = {"RssAnon": 0}
    threading.Thread(target=_watch, args=(peak,), daemon=True).start()
    run: Callable[[str, Mapping[str, str]], dict[str, object]] = run_diffusers if name == "diffusers" else run_ours
    figures = run(folder, RUNS.get(name, {}))
    memory = {"peak MB": status("VmHWM"), "anonymous MB": max(peak["RssAnon"], status("RssAnon"))}
    print(json.dumps({**memory, **figures}))


def _watch(peak: dict[str, int]) -> None:
    while True:
        peak["RssAnon"] = max(peak["RssAnon"], status("RssAnon"))
        time.sleep(0.01)


def status(field: str) -> int:
    """Megabytes from the kernel's account of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field + ":")) * 1024 // 10**6


def main(names: tuple[str, ...] = ()) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(os.environ.get("SFUMATO_BENCH_DIR", temporary)) / "v1-float16"
        if not (folder / "text_encoder" / "model.safetensors").is_file():
            write_model(folder)
        figures: dict[str, list[dict[str, object]]] = {}
        for _ in range(ROUNDS):
            for name in names or DEFAULT:
                command = [sys.executable, "-m", "benchmarks.memory", "--child", name, str(folder)]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                figures.setdefault(name, []).append(json.loads(done.stdout.splitlines()[-1]))
                print(f"{name:12}{figures[name][-1]}", flush=True)
    print(
        json.dumps({"side": SIDE, "rounds": ROUNDS, "median": {name: median(rows) for name, rows in figures.items()}})
    )


def median(rows: list[dict[str, object]]) -> dict[str, object]:
    return {
        key: statistics.median(row[key] for row in rows) if isinstance(value, (int, float)) else value
        for key, value in rows[0].items()
    }


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(*sys.argv[2:])
    else:
        main(tuple(sys.argv[1:]))
