"""A benchmark's results as one JSON document."""

from __future__ import annotations

import platform
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

import sfumato
from sfumato.bench.measure import Results, Row

_PACKAGES = ("torch", "diffusers", "transformers", "openvino", "stable-diffusion-cpp-python")


def document(results: Results) -> dict[str, Any]:
    """Give everything that was measured, round by round, and what it was measured on and with."""
    first = results.first
    return {
        "sfumato": sfumato.__version__,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "packages": {name: _version(name) for name in _PACKAGES},
        "machine": results.machine,
        "plan": results.plan.to_values() | {"fresh": results.fresh},
        "operations": results.operations,
        "gemm_gflops": results.gemm,
        "compared_with": first.contender.name if first is not None else None,
        "contenders": [_row(results, row) for row in results.rows],
    }


def _row(results: Results, row: Row) -> dict[str, Any]:
    about = {"name": row.contender.name, "about": row.contender.about}
    if row.why_not:
        return about | {"not_measured": row.why_not} | ({"trace": row.trace} if row.trace else {})
    return about | {
        "ended": row.ended or None,
        "trace": row.trace,
        "runs": row.runs,
        "dtype": row.dtype,
        "imports": row.imports,
        "load": row.load,
        "first_step": row.first_step,
        "processor_load": row.processor_load,
        "processor_first_step": row.processor_first_step,
        "seconds": row.seconds,
        "processor_seconds": row.processor_seconds,
        "median": {what: row.median(what) for what in row.seconds},
        "ratio": {what: results.ratio(row, what) for what in row.seconds},
        "gflops": results.gflops(row),
        "share_of_peak": results.share_of_peak(row),
        "peak_bytes": row.peak,
        "private_bytes_loaded": row.private,
        "device_peak_bytes": row.device_peak,
        "relative_error": row.error,
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
