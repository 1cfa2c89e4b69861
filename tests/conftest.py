"""For every test: one thread each, and which are slow. The models are tiny; `make test` runs a worker on every core."""

from __future__ import annotations

import os
import signal

import pytest
import torch

torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that tests start

# Shells start background jobs with SIGINT ignored, and the processes that tests start and stop would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Files that start processes, compile, or make many pictures: four fifths of the suite's time in a third of its files.
# `make quick` leaves them out. What every part promises is still tested there, by the files beside them.
SLOW = frozenset(
    {
        "test_bench_gpu.py",
        "test_bench_measuring.py",
        "test_checkpoint_memory.py",
        "test_cli_commands.py",
        "test_cli_data.py",
        "test_cli_engine.py",
        "test_cli_evaluate.py",
        "test_cli_generate.py",
        "test_cli_machine.py",
        "test_cli_process.py",
        "test_cli_report.py",
        "test_cli_terminal.py",
        "test_cli_train.py",
        "test_compat_diffusers.py",
        "test_config_hostile.py",
        "test_convert.py",
        "test_data_filter.py",
        "test_data_processes.py",
        "test_documentation.py",
        "test_engine_graphs.py",
        "test_engines.py",
        "test_evaluation_run.py",
        "test_examples.py",
        "test_interpolate_frames.py",
        "test_memory_modes.py",
        "test_model_hash.py",
        "test_pipeline_calls.py",
        "test_pipeline_layouts.py",
        "test_pipeline_pictures.py",
        "test_pipeline_planning.py",
        "test_pipeline_reproducible.py",
        "test_pipeline_shortcuts.py",
        "test_pipeline_text.py",
        "test_provenance_dialects.py",
        "test_serve_crash.py",
        "test_serve_worker.py",
        "test_shortcuts.py",
        "test_tiling.py",
        "test_train_autoencoder.py",
        "test_train_diffusion.py",
        "test_train_distributed.py",
        "test_train_encode.py",
        "test_train_pocket.py",
        "test_train_resume.py",
        "test_train_text.py",
        "test_warm_start.py",
        "test_weights_checkpoint.py",
        "test_weights_fuzz.py",
    }
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that need a GPU say so where there is none; those of a slow file are marked `slow`."""
    for item in items:
        if item.path.name in SLOW:
            item.add_marker(pytest.mark.slow)
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
