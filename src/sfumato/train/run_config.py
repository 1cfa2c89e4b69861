"""How a run is conducted, whatever it trains: batch, steps, optimiser, averages, files."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from sfumato.errors import InvalidConfig
from sfumato.train.optim.power_profile import gamma_of

OptimizerKind = Literal["adamw", "adam", "muon", "adamw8bit"]
RateSchedule = Literal["constant", "linear", "cosine", "trapezoid"]
Precision = Literal["float32", "bfloat16", "float16"]
Parallel = Literal["ddp", "fsdp"]


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerConfig:
    """The optimiser and its learning rate over time. Wrong values raise `InvalidConfig`."""

    kind: Annotated[
        OptimizerKind, "adamw (decoupled weight decay), adam, muon (adamw for all but hidden matrices) or adamw8bit"
    ] = "adamw"
    learning_rate: Annotated[float, "after the warm-up"] = 1e-4
    betas: Annotated[tuple[float, ...], "decay of the averages of the gradient and of its square"] = (0.9, 0.999)
    eps: Annotated[float, "added to the root of the second average"] = 1e-8
    weight_decay: Annotated[float, "share of each weight taken off a step, times the learning rate"] = 0.01
    warmup_steps: Annotated[int, "the rate rises linearly over these"] = 0
    schedule: Annotated[
        RateSchedule, "the rate after the warm-up: constant, or falling to 0 at the last step; trapezoid falls late"
    ] = "constant"
    decay_share: Annotated[float, "of the steps after the warm-up: the last ones, over which trapezoid falls"] = 0.2

    def __post_init__(self) -> None:
        if len(self.betas) != 2 or not all(0.0 <= beta < 1.0 for beta in self.betas):
            raise InvalidConfig(f"optimizer.betas = {self.betas} must be two numbers from 0 to below 1")
        if self.learning_rate <= 0.0:
            raise InvalidConfig(f"optimizer.learning_rate = {self.learning_rate} must be above 0")
        if not 0.0 < self.decay_share <= 1.0:
            raise InvalidConfig(f"optimizer.decay_share = {self.decay_share} must be above 0, and 1 at most")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """One stage of training. `batch` samples make one step, whatever `accumulate` splits them into. Wrong values raise
    `InvalidConfig`."""

    seed: Annotated[int, "decides the first weights, the order of samples and every draw"] = 0
    steps: Annotated[int, "optimiser steps of the whole stage"] = 1000
    batch: Annotated[int, "samples a step"] = 16
    accumulate: Annotated[int, "parts the batch is computed in, to save memory"] = 1
    precision: Annotated[Precision, "of the forward pass; weights and optimiser are float32 always"] = "float32"
    parallel: Annotated[Parallel, "with several processes: a copy each (ddp), or weights cut up (fsdp)"] = "ddp"
    checkpoint_activations: Annotated[bool, "compute blocks again in the backward pass, to save memory"] = False
    compile: Annotated[bool, "the networks with torch.compile: minutes at the start, faster afterwards"] = False
    channels_last: Annotated[bool, "memory layout of pictures: faster on most machines"] = True
    clip_norm: Annotated[float, "the gradient's norm is scaled down to this; 0 leaves it"] = 1.0
    ema_decay: Annotated[float, "of the moving average of the weights, which is what is published"] = 0.9999
    ema_decays: Annotated[tuple[float, ...], "of further averages, validated and kept beside that one"] = ()
    ema_sigma_rels: Annotated[
        tuple[float, ...], "relative widths of power averages in snapshots, to choose another width from after the run"
    ] = ()
    snapshot_every: Annotated[int, "steps between those snapshots; the last step has one, too"] = 1000
    resident: Annotated[
        bool, "keep the data set on the device and draw at random there: much faster on a GPU, where it fits"
    ] = False
    workers: Annotated[int, "threads that prepare samples; the results don't depend on it"] = 1
    log_every: Annotated[int, "steps between lines of metrics.jsonl"] = 10
    validate_every: Annotated[int, "steps between validations; 0 for none"] = 500
    checkpoint_minutes: Annotated[float, "between checkpoints"] = 5.0
    tensorboard: Annotated[bool, "write TensorBoard's files, too (extra train)"] = False
    wandb: Annotated[str, "project of Weights & Biases to log to, too (extra wandb); empty for none"] = ""
    keep: Annotated[int, "newest checkpoints kept, beside the best"] = 2
    optimizer: Annotated[OptimizerConfig, "how the weights are changed"] = field(default_factory=OptimizerConfig)

    def __post_init__(self) -> None:
        least = {"steps": 1, "batch": 1, "accumulate": 1, "workers": 1, "log_every": 1, "validate_every": 0, "keep": 1}
        least |= {"snapshot_every": 1}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise InvalidConfig(f"{name} = {getattr(self, name)} must be at least {low}")
        if self.batch % self.accumulate:
            raise InvalidConfig(f"batch = {self.batch} doesn't divide into accumulate = {self.accumulate} parts")
        if self.parallel == "fsdp" and self.optimizer.kind == "adamw8bit":
            raise InvalidConfig("optimizer.kind = 'adamw8bit' can't be cut up: use parallel = 'ddp'")
        for decay in (self.ema_decay, *self.ema_decays):
            if not 0.0 <= decay < 1.0:
                raise InvalidConfig(f"ema_decay = {decay} must be from 0 to below 1")
        if len({self.ema_decay, *self.ema_decays}) <= len(self.ema_decays):
            raise InvalidConfig(f"ema_decays = {self.ema_decays} and ema_decay = {self.ema_decay} must all differ")
        for sigma_rel in self.ema_sigma_rels:
            gamma_of(sigma_rel)
        if len(set(self.ema_sigma_rels)) < len(self.ema_sigma_rels):
            raise InvalidConfig(f"ema_sigma_rels = {self.ema_sigma_rels} must all differ")


# What may differ on resuming: no number that training computes depends on it, but for the order of sums (parallel).
FREE = frozenset(
    {
        "workers",
        "log_every",
        "validate_every",
        "snapshot_every",
        "checkpoint_minutes",
        "keep",
        "parallel",
        "checkpoint_activations",
        "tensorboard",
        "wandb",
    }
)
