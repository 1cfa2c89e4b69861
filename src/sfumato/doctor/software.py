"""What is installed: Python, torch, the kernels' compiler, accelerators, optional packages."""

from __future__ import annotations

import importlib.util
import platform
import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata

from sfumato.doctor.finding import Finding, advice, broken, ok

LEAST_PYTHON = (3, 11)
LEAST_TORCH = (2, 11)

# What each is good for, of the extras that change what a user gets; the others are for training and development.
_GOOD_FOR: Mapping[str, str] = {
    "safety": "pictures are checked where a model brings no checker",
    "sde": "the dpmpp_sde samplers",
    "openvino": "the openvino engine",
    "video": "--out walk.mp4",
    "inspect": "settings in other programs' pictures",
    "bench": "sfumato bench with diffusers, and --plot",
}


def software_findings() -> Iterator[Finding]:
    """Judge what is installed; imports torch, and compiles the kernels where they aren't yet."""
    yield _python(sys.version_info[:2])
    yield from _torch()
    yield extras(_requirements())


def torch_settings() -> tuple[int | None, str]:
    """How many threads torch uses, and for which processor it picks its code; (None, "nothing") without torch."""
    if importlib.util.find_spec("torch") is None:
        return None, "nothing"
    import torch

    return torch.get_num_threads(), torch.backends.cpu.get_cpu_capability()


def _python(version: Sequence[int]) -> Finding:
    seen = platform.python_version()
    if tuple(version) < LEAST_PYTHON:
        return broken("python", seen, f"use {'.'.join(map(str, LEAST_PYTHON))} or newer")
    return ok("python", seen)


def _torch() -> Iterator[Finding]:
    try:
        import torch
    except (ImportError, OSError) as error:
        yield broken("torch", f"can't be imported: {error}", "pip install --force-reinstall torch")
        return
    found = [int(digits) for digits in re.findall(r"\d+", torch.__version__)[:2]]
    if tuple(found) < LEAST_TORCH:
        yield broken("torch", torch.__version__, f"pip install 'torch>={'.'.join(map(str, LEAST_TORCH))}'")
    else:
        yield ok("torch", torch.__version__)
    yield _accelerator(
        cuda=[torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        mps=torch.backends.mps.is_available(),
        driver=shutil.which("nvidia-smi") is not None,
    )
    yield _kernels()


def _accelerator(*, cuda: Sequence[str], mps: bool, driver: bool) -> Finding:
    if cuda:
        return ok("accelerator", ", ".join(cuda))
    if mps:
        return ok("accelerator", "Apple's, by mps")
    if driver:
        what = "install torch's build for CUDA, as https://pytorch.org/get-started says for this system"
        return advice("accelerator", "an NVIDIA driver is installed, but torch sees no GPU", what)
    return ok("accelerator", "none: pictures are made on the processor")


def _kernels() -> Finding:
    from sfumato.engines.native_build import why_not

    if reason := why_not():
        return advice("kernels", "not there, so the fastest exact engine isn't", reason)
    return ok("kernels", "compiled for this processor")


def extras(requirements: Sequence[str]) -> Finding:
    """Judge the extras that change what a user gets: which are there, and what is missing for what.

    `requirements` are a distribution's: `torchsde>=0.2.6; extra == "sde"`.
    """
    wanted: dict[str, list[str]] = {}
    for requirement in requirements:
        if found := re.fullmatch(r"([\w.-]+).*;\s*extra == [\"']([\w-]+)[\"']", requirement):
            wanted.setdefault(found[2], []).append(found[1])
    missing = [
        f"{extra} ({reason})"
        for extra, reason in _GOOD_FOR.items()
        if extra in wanted and not all(map(_installed, wanted[extra]))
    ]
    there = [extra for extra in wanted if extra in _GOOD_FOR and not any(m.startswith(f"{extra} ") for m in missing)]
    seen = f"installed: {', '.join(there) or 'none'}"
    if missing:
        return advice(
            "extras", f"{seen}; missing: {', '.join(missing)}", "pip install 'sfumato[NAME]' for what you want"
        )
    return ok("extras", seen)


def _requirements() -> list[str]:
    try:
        return metadata.requires("sfumato") or []
    except metadata.PackageNotFoundError:  # run from its sources
        return []


def _installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True
