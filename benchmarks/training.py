"""The diffusion trainer beside a plain diffusers loop, and one run on two processes: pocket's UNet on random latents.

Each run is a process of its own, all of them in turn, SFUMATO_BENCH_ROUNDS (3) times, with SFUMATO_BENCH_BATCH (32)
pictures a step; the first steps warm up and SFUMATO_BENCH_STEPS (20) are measured. SFUMATO_BENCH_PART chooses:
"loop" compares the trainers in each of SFUMATO_BENCH_PRECISION (float32,bfloat16), with a frozen text encoder, AdamW,
clipped gradients and an average of the weights; "processes" has one process of one thread, two with as many pictures
each (weak scaling), and two that share the pictures of one (strong scaling), over gloo. `peak` is the largest resident
set of the whole process, torch included, when the last step is done; ours has written no checkpoint by then. With two
processes memory and processor seconds are those of the first, with its own pictures.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.memory import median, status

if TYPE_CHECKING:
    from torch import Tensor

    from sfumato.train.inputs.encoded_latents import LatentSample

ROUNDS = int(os.environ.get("SFUMATO_BENCH_ROUNDS", "3"))
BATCH = int(os.environ.get("SFUMATO_BENCH_BATCH", "32"))
STEPS = int(os.environ.get("SFUMATO_BENCH_STEPS", "20"))
PARTS = os.environ.get("SFUMATO_BENCH_PART", "loop,processes").split(",")
PRECISIONS = os.environ.get("SFUMATO_BENCH_PRECISION", "float32,bfloat16").split(",")
WARM, SAMPLES = 3, 1024
RATE, WEIGHT_DECAY, CLIP, DECAY = 1e-3, 0.01, 1.0, 0.999
FACTOR = 0.18215
POCKET = Path(__file__).parent.parent / "src" / "sfumato" / "assets" / "pocket"
CAPTIONS = ("a red heart", "two cats", "a dog left of a tree", "a blue key on a yellow background")


@dataclass(frozen=True, slots=True)
class Run:
    """One row of a table: whose loop, in which precision, on how many processes, with how many pictures a step."""

    loop: str
    precision: str
    batch: int
    processes: int = 1
    threads: int | None = None

    def figures(self) -> dict[str, float]:
        """What a process of its own measured."""
        launcher = ["torch.distributed.run", "--standalone", f"--nproc-per-node={self.processes}", "-m"]
        command = [sys.executable, "-m", *(launcher if self.processes > 1 else ()), "benchmarks.training", "--child"]
        threads = {} if self.threads is None else {"OMP_NUM_THREADS": str(self.threads)}
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run(
                [*command, self.loop, self.precision, str(self.batch), str(Path(folder, "run"))],
                stdout=subprocess.PIPE,
                text=True,
                check=True,
                env=os.environ | threads,
            )
        found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
        return found


@dataclass(slots=True)
class Clock:
    """What was on the clocks, and the most memory so far, after each step."""

    marks: dict[int, tuple[float, float, int]] = field(default_factory=dict)

    def note(self, step: int) -> None:
        self.marks[step] = (time.perf_counter(), time.process_time(), status("VmHWM"))

    def figures(self, batch: int) -> dict[str, float]:
        (begun, begun_cpu, _), (ended, ended_cpu, peak) = self.marks[WARM], self.marks[WARM + STEPS]
        pictures = batch * STEPS
        own = pictures / int(os.environ.get("WORLD_SIZE", "1"))
        return {
            "images/s": round(pictures / (ended - begun), 2),
            "cpu ms/image": round(1000.0 * (ended_cpu - begun_cpu) / own, 2),
            "peak MB": peak,
        }


class Posteriors:
    """Random moments of pocket's latents, a caption each."""

    def __init__(self) -> None:
        import torch

        generator = torch.Generator().manual_seed(1)
        self.mean, self.logvar = torch.randn(2, SAMPLES, 4, 16, 16, generator=generator)

    def __len__(self) -> int:
        return SAMPLES

    def latents(self, index: int) -> LatentSample:
        from sfumato.train.inputs.encoded_latents import LatentSample

        caption = CAPTIONS[index % len(CAPTIONS)]
        return LatentSample(mean=self.mean[index], logvar=self.logvar[index], captions=(caption,))


def run_ours(precision: str, batch: int, folder: Path, clock: Clock) -> None:
    from sfumato.json_files import read_object
    from sfumato.models.clip_text import ClipTextConfig
    from sfumato.models.unet_config import UNetConfig
    from sfumato.prompt.tokenizer import Tokenizer
    from sfumato.train.run_config import OptimizerConfig, RunConfig
    from sfumato.train.tasks.diffusion_task import DiffusionTask, DiffusionTraining
    from sfumato.train.trainer import train

    run = RunConfig(
        steps=WARM + STEPS,
        batch=batch,
        precision=precision,
        clip_norm=CLIP,
        ema_decay=DECAY,
        validate_every=0,
        checkpoint_minutes=60.0,
        optimizer=OptimizerConfig(learning_rate=RATE, weight_decay=WEIGHT_DECAY),
    )
    config = DiffusionTraining(
        run=run,
        unet=UNetConfig.from_published(read_object(POCKET / "unet" / "config.json")),
        text_encoder=ClipTextConfig.from_published(read_object(POCKET / "text_encoder" / "config.json")),
        scaling_factor=FACTOR,
        caption_dropout=0.0,
    )
    task = DiffusionTask(config, Posteriors(), Tokenizer.from_folder(POCKET / "tokenizer"))
    train(task, config, folder, on_progress=lambda event: clock.note(event.step))


def run_diffusers(precision: str, batch: int, folder: Path, clock: Clock) -> None:
    """As diffusers' train_text_to_image.py has it, from latents encoded and captions tokenized beforehand."""
    import torch
    import torch.nn.functional as F
    from diffusers import DDPMScheduler, UNet2DConditionModel
    from diffusers.training_utils import EMAModel
    from torch.utils.data import DataLoader, TensorDataset
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(POCKET / "unet")).train()
    text_encoder = CLIPTextModel(CLIPTextConfig.from_pretrained(POCKET / "text_encoder"))
    text_encoder.requires_grad_(False).to(dtype=dtype)
    scheduler = DDPMScheduler.from_pretrained(POCKET / "scheduler")
    tokenizer = CLIPTokenizer.from_pretrained(POCKET / "tokenizer")
    ids = tokenizer(list(CAPTIONS), padding="max_length", truncation=True, return_tensors="pt").input_ids
    stored = Posteriors()
    data = TensorDataset(stored.mean, stored.logvar, ids.repeat(SAMPLES // len(CAPTIONS), 1))
    loader = DataLoader(data, batch_size=batch, shuffle=True, drop_last=True)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=RATE, weight_decay=WEIGHT_DECAY)
    average = EMAModel(unet.parameters(), decay=DECAY)
    clock.note(0)
    for step, (mean, logvar, tokens) in enumerate(_over_and_over(loader, WARM + STEPS), start=1):
        latents = (mean + torch.exp(0.5 * logvar) * torch.randn_like(mean)) * FACTOR
        noise = torch.randn_like(latents)
        timesteps = torch.randint(scheduler.config.num_train_timesteps, (batch,))
        noisy = scheduler.add_noise(latents, noise, timesteps)
        context = text_encoder(tokens)[0]
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            answer = unet(noisy, timesteps, context).sample
        F.mse_loss(answer.float(), noise).backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
        average.step(unet.parameters())
        clock.note(step)


LOOPS: Mapping[str, Callable[[str, int, Path, Clock], None]] = {"ours": run_ours, "diffusers": run_diffusers}


def _over_and_over(loader: Iterable[list[Tensor]], count: int) -> Iterator[list[Tensor]]:
    """So many batches, in as many epochs as it takes."""
    epochs = itertools.chain.from_iterable(itertools.repeat(loader))
    return itertools.islice(epochs, count)


def child(loop: str, precision: str, batch: str, folder: str) -> None:
    """One run; its figures as a line of JSON."""
    clock = Clock()
    LOOPS[loop](precision, int(batch), Path(folder), clock)
    if os.environ.get("RANK", "0") == "0":
        print(json.dumps(clock.figures(int(batch))))


def runs() -> dict[str, Run]:
    """By the names of their rows."""
    found = {}
    if "loop" in PARTS:
        for precision, loop in itertools.product(PRECISIONS, LOOPS):
            found[f"{loop}, {precision}"] = Run(loop, precision, BATCH)
    if "processes" in PARTS:
        one = Run("ours", PRECISIONS[0], BATCH, threads=1)
        found |= {"one process": one, "two, each as many": replace(one, processes=2, batch=2 * BATCH)}
        found["two, sharing them"] = replace(one, processes=2)
    return found


def main() -> None:
    if BATCH % 2 or SAMPLES % BATCH:
        raise SystemExit(f"SFUMATO_BENCH_BATCH={BATCH} must be even, and divide {SAMPLES}")
    wanted = runs()
    figures: dict[str, list[dict[str, object]]] = {name: [] for name in wanted}
    for _, (name, run) in itertools.product(range(ROUNDS), wanted.items()):
        figures[name].append(run.figures())
        print(f"  {name:22}{figures[name][-1]}", flush=True)
    medians = {name: median(rows) for name, rows in figures.items()}
    print(f"{'median of ' + str(ROUNDS):24}" + "".join(f"{column:>16}" for column in next(iter(medians.values()))))
    for name, row in medians.items():
        print(f"{name:24}" + "".join(f"{value:16}" for value in row.values()))
    compared = {
        name: round(medians[name]["images/s"] / (wanted[name].processes * medians["one process"]["images/s"]), 3)
        for name in medians
        if wanted[name].processes > 1
    }
    for name, share in compared.items():
        print(f"{name}: {share:.0%} of twice what one process does")
    print(
        json.dumps(
            {"batch": BATCH, "steps": STEPS, "rounds": ROUNDS, "median": medians, "parallel efficiency": compared}
        )
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(*sys.argv[2:])
    else:
        main()
