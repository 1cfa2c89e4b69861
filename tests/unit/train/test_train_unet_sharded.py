"""The UNet cut up by FSDP, level by level, as `train.distributed` does it: the same answers and gradients."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from support.engine_networks import gaussian, relative, tiny_unet


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    """A world of one process."""
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.usefixtures("alone")
def test_a_sharded_unet_answers_and_learns_as_a_whole_one() -> None:
    whole = tiny_unet("v1-like").requires_grad_()
    sharded = deepcopy(whole)
    mesh = init_device_mesh("cpu", (1,))
    for level in (*sharded.down_blocks, *sharded.up_blocks):
        fully_shard(level, mesh=mesh)
    fully_shard(sharded, mesh=mesh)
    given = gaussian(2, 4, 16, 16), torch.tensor([981.0, 12.0]), gaussian(2, 7, 24, seed=3)
    answers = [unet(*given) for unet in (whole, sharded)]
    assert relative(answers[1], answers[0]) <= 1e-6
    for answer in answers:
        answer.square().sum().backward()
    found, expected = (
        torch.cat([_whole(weight.grad).flatten() for weight in unet.parameters()]) for unet in (sharded, whole)
    )
    assert relative(found, expected) <= 1e-5


def _whole(gradient: Tensor | None) -> Tensor:
    assert gradient is not None
    return gradient.full_tensor() if isinstance(gradient, DTensor) else gradient
