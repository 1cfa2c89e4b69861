"""A model of v1-4's size from each kind of file: the same outputs, the memory it takes, the time to the first step.

diffusers writes the model (random weights), we convert it to a folder of ours, whose tensors lie on 64 bytes, a single
`.safetensors` and a `.ckpt`. Private memory is what the weights cost beyond the pages of their file. Each load runs in
a process of its own, ours and diffusers' in turn; then one guided UNet step at 512×512. diffusers' folder is loaded
cold and after `sfumato models warm`. Needs 25 GB of disk and 10 GB of memory. `SFUMATO_BENCH_DIR` names a folder to
keep the files in between runs.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROUNDS = int(os.environ.get("SFUMATO_BENCH_ROUNDS", "3"))


def write_model(folder: Path) -> None:
    """diffusers' pipeline with random weights in v1-4's shape, and the same model as single files."""
    import torch
    from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    from sfumato.modelfiles.conversion import convert
    from sfumato.modelfiles.open_model import V1

    if not (folder / "folder").is_dir():
        torch.manual_seed(0)
        pipeline = StableDiffusionPipeline(
            unet=UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(V1 / "unet")),
            vae=AutoencoderKL.from_config(AutoencoderKL.load_config(V1 / "vae")),
            text_encoder=CLIPTextModel(CLIPTextConfig.from_pretrained(V1 / "text_encoder")),
            tokenizer=CLIPTokenizer.from_pretrained(V1 / "tokenizer"),
            scheduler=PNDMScheduler.from_pretrained(V1 / "scheduler"),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipeline.save_pretrained(folder / "folder")
        del pipeline
        for part in ("scheduler", "tokenizer"):  # what the published model has, not what this diffusers makes of it
            shutil.rmtree(folder / "folder" / part)
            shutil.copytree(V1 / part, folder / "folder" / part)
    for name in ("single.safetensors", "single.ckpt"):
        if not (folder / name).exists():
            convert(folder / "folder", folder / name, layout="compvis")
    if not (folder / "ours").is_dir():
        convert(folder / "folder", folder / "ours", layout="diffusers")


def inputs() -> tuple[object, object, object]:
    import torch

    generator = torch.Generator().manual_seed(1)
    latents = torch.randn((1, 4, 64, 64), generator=generator)
    context = torch.randn((2, 77, 768), generator=generator)
    return latents.repeat(2, 1, 1, 1), torch.tensor([981.0, 981.0]), context


def load_ours(path: str) -> dict[str, object]:
    started = time.perf_counter()
    import torch

    from sfumato.modelfiles.load_options import LoadOptions
    from sfumato.pipeline.model import load_model

    imported = time.perf_counter()
    options = LoadOptions(device="cpu", dtype="float32", engine="eager")
    model = load_model(Path(path), options, name="bench")
    loaded = time.perf_counter()
    memory = _memory_mb()
    with torch.inference_mode():
        answer = model.unet(*inputs())
    stepped = time.perf_counter()
    return _row(started, imported, loaded, stepped, memory, answer)


def load_diffusers(path: str) -> dict[str, object]:
    started = time.perf_counter()
    import torch
    from diffusers import StableDiffusionPipeline

    imported = time.perf_counter()
    pipeline = StableDiffusionPipeline.from_pretrained(path)
    loaded = time.perf_counter()
    memory = _memory_mb()
    with torch.inference_mode():
        answer = pipeline.unet(*inputs()).sample
    stepped = time.perf_counter()
    return _row(started, imported, loaded, stepped, memory, answer)


LOADERS = {"ours": load_ours, "diffusers": load_diffusers}


def _row(
    started: float, imported: float, loaded: float, stepped: float, memory: tuple[float, float], answer: object
) -> dict:
    import numpy as np

    values = np.ascontiguousarray(answer)
    with tempfile.NamedTemporaryFile(suffix=".npy", delete=False) as file:
        np.save(file, values)
    return {
        "import": imported - started,
        "load": loaded - imported,
        "step": stepped - loaded,
        "to first step": stepped - started,
        "private MB loaded": memory[0],
        "peak MB after load": memory[1],
        "peak MB after step": _memory_mb()[1],
        "sha256": hashlib.sha256(values.tobytes()).hexdigest(),
        "answer": file.name,
    }


def _memory_mb() -> tuple[float, float]:
    """Private memory now, and the most resident so far, of this process alone: getrusage would count what its parent
    was when it started."""
    status = Path("/proc/self/status").read_text()
    private, peak = (int(re.search(rf"{name}:\s+(\d+) kB", status)[1]) / 1024 for name in ("RssAnon", "VmHWM"))
    return private, peak


def run(loader: str, path: Path, home: Path) -> dict:
    command = [sys.executable, "-m", "benchmarks.load", loader, str(path)]
    done = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=os.environ | at(home)
    )
    return json.loads(done.stdout.splitlines()[-1])


def at(home: Path) -> dict[str, str]:
    """The environment of a program that keeps its cache and its lists there."""
    return {"XDG_CACHE_HOME": str(home / "cache"), "SFUMATO_HOME": str(home / "library")}


def warm(path: Path, home: Path) -> None:
    """`sfumato models warm`, for a program with that home."""
    command = [sys.executable, "-m", "sfumato.cli.entry", "models", "warm", str(path)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ | at(home))


def main() -> None:
    import numpy as np

    with contextlib.ExitStack() as stack:
        kept = os.environ.get("SFUMATO_BENCH_DIR")
        folder = Path(kept or stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        write_model(folder)
        cases = {
            "diffusers folder": ("diffusers", folder / "folder"),
            "ours, their folder": ("ours", folder / "folder"),
            "their folder, warm": ("ours", folder / "folder"),
            "ours, our folder": ("ours", folder / "ours"),
            "ours .safetensors": ("ours", folder / "single.safetensors"),
            "ours .ckpt": ("ours", folder / "single.ckpt"),
        }
        warm(folder / "folder", folder / "warm-home")
        rows: dict[str, list[dict]] = {name: [] for name in cases}
        for _ in range(ROUNDS):
            for name, (loader, path) in cases.items():
                home = folder / ("warm-home" if name.endswith("warm") else "home")
                rows[name].append(run(loader, path, home))
        fields = (
            "import",
            "load",
            "step",
            "to first step",
            "private MB loaded",
            "peak MB after load",
            "peak MB after step",
        )
        print(f"{'median of ' + str(ROUNDS):20}" + "".join(f"{field:>20}" for field in fields))
        for name, runs in rows.items():
            medians = (statistics.median(run[field] for run in runs) for field in fields)
            print(f"{name:20}" + "".join(f"{median:20.2f}" for median in medians))
        reference = np.load(rows["diffusers folder"][0]["answer"])
        for name in list(cases)[1:]:
            answer = np.load(rows[name][0]["answer"])
            error = np.abs(answer - reference).max() / reference.std()
            print(f"{name}: largest difference to diffusers {error:.1e} of the standard deviation")
        ours = {row["sha256"] for name in list(cases)[1:] for row in rows[name]}
        print(f"outputs of all our loads identical: {len(ours) == 1}")
        for runs in rows.values():
            for row in runs:
                Path(row["answer"]).unlink()


if __name__ == "__main__":
    if len(sys.argv) == 3:
        print(json.dumps(LOADERS[sys.argv[1]](sys.argv[2])))
    else:
        main()
