"""GroupNorm and SiLU in one Triton kernel: on a CPU in Triton's interpreter, on a GPU in tests/gpu."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sfumato.engines.fused import FusedGroupNorm, fused_copy, why_not
from sfumato.nn.norm import GroupNormSiLU
from support.engine_networks import gaussian, tiny_autoencoder, tiny_unet

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="needs the package triton, which torch's builds for CUDA bring"
)
MOST = {"torch.float32": 1e-5, "torch.float16": 1e-3, "torch.bfloat16": 8e-3}  # a rounding or two


@needs_triton
def test_the_kernels_match_torch_in_tritons_interpreter() -> None:
    """bfloat16's results are cut off there, not rounded, hence twice the error."""
    program = Path(__file__).parents[1] / "support" / "triton_interpreted.py"
    done = subprocess.run(
        [sys.executable, str(program)],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    errors = json.loads(done.stdout)
    assert len(errors) == 8 * 3 * 2 + 3  # shapes, dtypes, with and without SiLU; the networks
    for name, error in errors.items():
        assert error <= MOST.get(name.split()[-1], 1e-5), name


def test_every_group_norm_is_fused_in_a_twin_with_the_same_weights_and_the_network_left_alone() -> None:
    for network in (tiny_unet("v1-like"), tiny_autoencoder("v1-like")):
        copied = fused_copy(network)
        norms = {name: module for name, module in network.named_modules() if isinstance(module, nn.GroupNorm)}
        fused = {name: module for name, module in copied.named_modules() if isinstance(module, FusedGroupNorm)}
        assert norms.keys() == fused.keys()
        assert not any(isinstance(module, nn.GroupNorm) for module in copied.modules())
        for name, module in fused.items():
            norm = norms[name]
            assert module.weight is norm.weight
            assert module.bias is norm.bias
            assert (module.groups, module.eps) == (norm.num_groups, norm.eps)
            assert module.silu is isinstance(norm, GroupNormSiLU)
        assert copied.state_dict().keys() == network.state_dict().keys()


def test_without_triton_nothing_is_fused_and_the_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    assert why_not.__wrapped__("cpu") == "the package triton isn't installed"


def test_a_triton_whose_errors_have_no_module_is_not_called_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    triton = ModuleType("triton")
    triton.__version__ = "3.0.0"
    monkeypatch.setitem(sys.modules, "triton", triton)
    monkeypatch.setitem(sys.modules, "triton.errors", None)
    assert why_not.__wrapped__("cpu").startswith("triton 3.0.0 has no triton.errors: install ")


def test_the_norm_with_its_activation_is_both_to_the_bit() -> None:
    x, norm = gaussian(2, 12, 5, 7), GroupNormSiLU(3, 12, eps=1e-6)
    nn.init.normal_(norm.weight)
    assert torch.equal(norm(x), F.silu(F.group_norm(x, 3, norm.weight, norm.bias, 1e-6)))
