"""The networks run by OpenVINO: converted from our modules for each shape that is asked for, and kept on disk.

float32 throughout: on processors with bf16 instructions OpenVINO would otherwise compute in bf16 without saying so.
"""

from __future__ import annotations

import hashlib
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.files import atomic_folder, locked
from sfumato.models.autoencoder import Autoencoder, Posterior
from sfumato.models.unet import UNet
from sfumato.models.unet_inputs import UNetInputs
from sfumato.runtime import require
from sfumato.user_cache import cache_folder

_FILE, _TELEMETRY = "network.xml", "openvino_telemetry"


class Converted:
    """A module's method as OpenVINO runs it; every set of input shapes is compiled once a process and converted once a
    machine. Raises `MissingExtra` when made without OpenVINO."""

    def __init__(
        self,
        name: str,
        module: nn.Module,
        run: Callable[..., Tensor | tuple[Tensor, ...]],
        *,
        precision: str = "f32",
    ) -> None:
        # OpenVINO reports each conversion to its makers where this package is found. Nothing here calls home.
        sys.modules.setdefault(_TELEMETRY, ModuleType(_TELEMETRY))
        self._openvino: Any = require("openvino", extra="openvino")
        self._name, self._module, self._run, self._precision = name, module, run, precision
        self._lock = threading.Lock()
        self._compiled: dict[tuple[torch.Size, ...], Any] = {}

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        with self._lock:  # a compiled model has one request's memory
            key = tuple(value.shape for value in inputs)
            if key not in self._compiled:
                self._compiled[key] = self._compile(inputs)
            answers = self._compiled[key]([value.contiguous().numpy() for value in inputs])
            return [torch.from_numpy(answer.copy()) for answer in answers.values()]

    def _compile(self, inputs: tuple[Tensor, ...]) -> Any:
        ov = self._openvino
        folder = cache_folder() / "openvino" / self._key(inputs)
        folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with locked(folder.with_suffix(".lock")):
            if not (folder / _FILE).is_file():
                with atomic_folder(folder, overwrite=True) as new:
                    self._convert(inputs, new / _FILE)
        # The threads of PyTorch's setting, so that a record's number of threads means the same in every engine.
        options = {"INFERENCE_PRECISION_HINT": self._precision, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        return ov.Core().compile_model(str(folder / _FILE), "CPU", options)

    def _convert(self, inputs: tuple[Tensor, ...], path: Path) -> None:
        ov = self._openvino
        shapes = [tuple(value.shape) for value in inputs]
        with torch.inference_mode(False), torch.no_grad():  # the former by itself turns gradients on
            # Tracing keeps tensors for a backward that never comes; those of an inference mode can't be kept.
            examples = tuple(value.clone() for value in inputs)
            model = ov.convert_model(_Traced(self._module, self._run), example_input=examples, input=shapes)
        ov.save_model(model, str(path), compress_to_fp16=False)

    def _key(self, inputs: tuple[Tensor, ...]) -> str:
        """A name made of the weights, the shapes and OpenVINO's version: a changed model is another one."""
        digest = hashlib.sha256(f"{self._openvino.__version__} {self._name}".encode())
        for value in inputs:
            digest.update(str(tuple(value.shape)).encode())
        for name, value in self._module.state_dict().items():
            digest.update(name.encode())
            digest.update(memoryview(value.detach().contiguous().numpy()).cast("B"))
        return f"{self._name}-{digest.hexdigest()[:24]}"


class _Traced(nn.Module):
    """What OpenVINO's converter takes: a module whose forward is the method."""

    def __init__(self, module: nn.Module, run: Callable[..., Tensor | tuple[Tensor, ...]]) -> None:
        super().__init__()
        self.module, self.run = module, run

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Call the method on tensors of any shape."""
        return self.run(*inputs)


class OpenVinoUNet:
    """An `Engine.unet`. `precision` is OpenVINO's hint; the engine's is float32."""

    def __init__(self, unet: UNet, *, precision: str = "f32") -> None:
        self._converted = Converted("unet", unet, unet, precision=precision)

    def __call__(self, inputs: UNetInputs) -> Tensor:
        """The answers (k·B, out_channels, h, w) float32."""
        return self._converted(*inputs.rows(torch.float32))[0]


class OpenVinoAutoencoder:
    """The autoencoder as OpenVINO runs it, `encode` and `decode` as the module's."""

    def __init__(self, autoencoder: Autoencoder) -> None:
        def moments(images: Tensor) -> tuple[Tensor, Tensor]:
            """Mean and logvar (B, C, h, w) of images (B, 3, H, W)."""
            posterior = autoencoder.encode(images)
            return posterior.mean, posterior.logvar

        self._decode = Converted("decoder", autoencoder, autoencoder.decode)
        self._encode = Converted("encoder", autoencoder, moments)

    def encode(self, images: Tensor) -> Posterior:
        """Pixels (B, 3, H, W) → the posterior."""
        mean, logvar = self._encode(images)
        return Posterior(mean, logvar)

    def decode(self, latents: Tensor) -> Tensor:
        """Unscaled latents (B, C, h, w) → pixels (B, 3, H, W)."""
        return self._decode(latents)[0]
