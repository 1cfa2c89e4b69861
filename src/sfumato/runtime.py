"""What the machine offers: devices, dtypes, optional packages. The only place that looks."""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import platform
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from sfumato.errors import InvalidRequest, MissingExtra

if TYPE_CHECKING:
    import torch

logger = logging.getLogger("sfumato")

_DEVICES = "auto, cpu, cuda, cuda:N or mps"
DTYPES = ("float32", "float16", "bfloat16")
OPENMP_SPINS = "2000"  # rounds; OpenMP's own 300,000 take some milliseconds


def require(module: str, *, extra: str) -> ModuleType:
    """Import an optional dependency, or raise `MissingExtra` saying which extra brings it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise MissingExtra(f"this needs the package {package}: pip install 'sfumato[{extra}]'") from error


def resolve_device(name: str = "auto") -> torch.device:
    """Resolve a device's name; `auto` is cuda (NVIDIA or ROCm), else mps, else cpu.

    Raises `InvalidRequest` for a device that isn't there.
    """
    import torch

    if name == "auto":
        accelerators = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
        return _announced(torch.device(next((kind for kind, there in accelerators.items() if there), "cpu")))
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InvalidRequest(f"device {name!r} is unknown: use {_DEVICES}") from error
    if device.type not in ("cpu", "cuda", "mps"):
        raise InvalidRequest(f"device {name!r} is not supported: use {_DEVICES}")
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if count == 0:
            raise InvalidRequest(f"device {name!r}: torch {torch.__version__} sees no CUDA or ROCm device; use cpu")
        if (device.index or 0) >= count:
            raise InvalidRequest(f"device {name!r}: this machine has {count}, numbered from 0")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise InvalidRequest("device 'mps' is not available on this machine: use cpu")
    return _announced(device)


def _announced(device: torch.device) -> torch.device:
    """The device, with a warning where nobody has run the tests yet."""
    if device.type != "cpu" and not is_nvidia(device):
        _warn_untried("cuda (ROCm)" if device.type == "cuda" else device.type)
    return device


@functools.cache
def _warn_untried(kind: str) -> None:
    """Log that the tests haven't been run on such a device, once in a process."""
    logger.warning("device %s: sfumato's tests have not been run on one yet", kind)


def is_nvidia(device: torch.device) -> bool:
    """Whether "cuda" means CUDA: torch calls AMD's devices so too."""
    import torch

    return device.type == "cuda" and torch.version.hip is None


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """Resolve a dtype's name; `auto` is float32 on a CPU (exact, and half precision is slow there), float16 elsewhere.

    Raises `InvalidRequest` for an unknown name.
    """
    import torch

    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.float16
    if name not in DTYPES:
        raise InvalidRequest(f"dtype {name!r} is unknown: use auto, {', '.join(DTYPES)}")
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def compute_exactly(device: torch.device, dtype: torch.dtype) -> None:
    """Have float32 mean float32 on CUDA too, where cuDNN's convolutions keep 10 bits of it otherwise (TF32, torch's
    default). For the whole process: torch has no narrower switch."""
    import torch

    if device.type == "cuda" and dtype is torch.float32:
        torch.backends.cudnn.allow_tf32 = False


def bound_openmp_waiting(environment: MutableMapping[str, str]) -> None:
    """Have OpenMP's threads wait awake for a hundredth of the time they would: where cores are shared with anything
    else, those that wait take them from those that compute. What the user set, stays.

    For a command's own process, before torch is loaded: GNU's OpenMP reads it only then.
    """
    if "OMP_WAIT_POLICY" not in environment:
        environment.setdefault("GOMP_SPINCOUNT", OPENMP_SPINS)


def free_memory(device: torch.device) -> int | None:
    """Bytes that can still be had on a device, None where nobody says: what is available on the machine, within what a
    control group (a container's) leaves; on a GPU, what is free and what torch holds unused."""
    import torch

    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    return free_system_memory()


def free_system_memory() -> int | None:
    """Free memory of the CPU in bytes, as `free_memory`, but told without torch."""
    limits = [left for left in (_available(), *_group_leaves()) if left is not None]
    return min(limits, default=None)


def gigabytes(count: int) -> str:
    """Say a number of bytes as people do: "2.4 GB"."""
    return f"{count / 1e9:.1f} GB"


_OF_MEMORY = ("allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED")


def is_of_memory(error: Exception) -> bool:
    """Tell whether an error is one of torch's ways of saying that memory ran out."""
    import torch

    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    # Only plain ones: torch.AcceleratorError speaks of memory too when a kernel read where it must not.
    return type(error) is RuntimeError and any(words in str(error) for words in _OF_MEMORY)


def return_freed_memory() -> None:
    """Have glibc give large blocks back to the system as soon as they are freed, which it does only at first. Nothing
    where the allocator is another."""
    import ctypes

    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, 2**20)


_MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of malloc.h: larger blocks are mappings of their own; setting it fixes it


def _available() -> int | None:
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


_GROUPS = (  # limit, usage and statistics of control groups, versions 2 and 1, as a process in a container sees them
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.stat"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        "/sys/fs/cgroup/memory/memory.stat",
    ),
)


def _group_leaves() -> Iterator[int]:
    """Give what is left of each limit. Cached files count as used there, but give way."""
    for limit, usage, statistics in _GROUPS:
        with contextlib.suppress(OSError, ValueError):
            most = int(Path(limit).read_text())  # "max" where there is none
            values = dict(line.split() for line in Path(statistics).read_text().splitlines())
            yield most - int(Path(usage).read_text()) + int(values.get("inactive_file", 0))


def dtype_name(dtype: torch.dtype) -> str:
    """Name a dtype as people write it: "float16"."""
    return str(dtype).removeprefix("torch.")


def processor_name(device: torch.device) -> str:
    """What computes there, in the maker's words: pictures are promised to be the same only on the same kind."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return f"{line.partition(':')[2].strip()} ({torch.backends.cpu.get_cpu_capability()})"
    return f"{platform.processor() or platform.machine()} ({torch.backends.cpu.get_cpu_capability()})"
