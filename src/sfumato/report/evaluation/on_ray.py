"""A run's shards on the machines of a Ray cluster, all of which see the folder and the models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sfumato.modelfiles.load_options import LoadOptions
from sfumato.report.evaluation.evaluation_plan import read_run
from sfumato.report.evaluation.run_pictures import Shard, generate_missing, load_for_evaluation
from sfumato.runtime import require


def generate_on_ray(
    folder: Path,
    shards: int,
    *,
    options: LoadOptions,
    gpus: float = 0.0,
    on_pictures: Callable[[int], None] = lambda count: None,
) -> int:
    """Generate the pictures of a run as so many tasks, each with `gpus` of a GPU, and return their number.

    A task that dies is started again by Ray and goes on where it was.
    `MissingExtra` without Ray.
    """
    ray = require("ray", extra="ray")
    if not ray.is_initialized():
        ray.init(log_to_driver=False)
    task = ray.remote(num_gpus=gpus, max_retries=3)(_generate_shard)
    waiting = [task.remote(str(folder.resolve()), i, shards, options) for i in range(shards)]
    generated = 0
    while waiting:
        finished, waiting = ray.wait(waiting)
        for one in ray.get(finished):
            generated += one
            on_pictures(one)
    return generated


def _generate_shard(folder: str, index: int, of: int, options: LoadOptions) -> int:
    plan, prompts = read_run(Path(folder))
    shard = Shard(index=index, of=of)
    return generate_missing(
        Path(folder), plan, prompts, shard=shard, load=lambda model: load_for_evaluation(model, options)
    )
