"""What only shows in a process of its own: what is imported, signals, pipes, and the same bytes everywhere."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from support.command_line import Cli, files_in

COMMAND = [sys.executable, "-c", "from sfumato.cli.main import main; main()"]

OPENMP = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


def environment() -> dict[str, str]:
    """Ours, with our import path and one thread."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}


def start(*arguments: str, **options: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        **options,
    )


def test_help_imports_nothing_heavy(folder: Path) -> None:
    script = (
        "import sys; from sfumato.cli.main import run; code = run(['generate', '--help']);"
        "heavy = {'torch', 'PIL', 'numpy', 'huggingface_hub', 'safetensors', 'tokenizers'} & set(sys.modules);"
        "sys.exit(f'imported {heavy}' if heavy else code)"
    )
    finished = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment())
    assert (finished.returncode, finished.stderr) == (0, "")


@pytest.mark.parametrize(
    ("command", "set_by_the_user", "there"),
    [
        ("generate", {}, {"GOMP_SPINCOUNT": "2000"}),
        ("evaluate", {}, {"GOMP_SPINCOUNT": "2000"}),
        ("train", {"GOMP_SPINCOUNT": "7"}, {"GOMP_SPINCOUNT": "7"}),
        ("bench", {"OMP_WAIT_POLICY": "passive"}, {"OMP_WAIT_POLICY": "passive"}),
    ],
)
def test_every_command_bounds_how_long_openmp_waits_awake(
    folder: Path, command: str, set_by_the_user: dict[str, str], there: dict[str, str]
) -> None:
    script = (
        "import atexit, os, sys; from sfumato.cli.main import main; assert 'torch' not in sys.modules;"
        f"atexit.register(lambda: print({{name: os.environ[name] for name in {OPENMP} if name in os.environ}}));"
        "main()"
    )
    finished = run_with_openmp(script, command, "--help", **set_by_the_user)
    assert finished.stdout.splitlines()[-1] == str(there), finished.stderr


def test_importing_the_library_leaves_the_environment_alone(folder: Path) -> None:
    script = "import os; before = dict(os.environ); import sfumato; sfumato.load_pipeline; print(before == os.environ)"
    assert run_with_openmp(script).stdout == "True\n"


def run_with_openmp(script: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a script in a process where of OpenMP nothing but these is set."""
    plain = {name: value for name, value in environment().items() if name not in OPENMP}
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=plain | variables)


def test_another_process_makes_the_same_file(cli: Cli, folder: Path) -> None:
    process = start("generate", "rocket", "--steps", "2", "--seed", "6", "--out", "theirs.png")
    assert process.communicate(timeout=120)[0] == "theirs.png\n" and process.returncode == 0
    again = cli("replay", "theirs.png")
    assert again.out.startswith("theirs.png: identical")


def test_ctrl_c_stops_with_130_and_leaves_whole_files_only(folder: Path) -> None:
    (folder / "p.jsonl").write_text(
        json.dumps({"prompt": "quick", "steps": 1}) + "\n" + json.dumps({"prompt": "slow", "steps": 1000}) + "\n"
    )
    process = start("generate", "--prompts-file", "p.jsonl")
    assert process.stdout is not None
    assert process.stdout.readline() == "pictures/00001-0-quick.png\n"  # the second picture is being made
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out, err.splitlines()[-1]) == (130, "", "sfumato: stopped")
    assert "Traceback" not in err
    assert files_in(folder) == ["p.jsonl", "pictures/00001-0-quick.png"]


def test_an_old_encoding_loses_letters_and_nothing_else(folder: Path) -> None:
    ascii_only = environment() | {"PYTHONIOENCODING": "ascii"}
    finished = subprocess.run([*COMMAND, "samplers"], capture_output=True, text=True, env=ascii_only)
    assert (finished.returncode, finished.stderr) == (0, "")
    assert "Adams?Bashforth" in finished.stdout


def test_a_reader_that_leaves_is_no_drama(folder: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    finished = subprocess.run(
        [*COMMAND, "samplers"], stdout=writing, stderr=subprocess.PIPE, text=True, env=environment()
    )
    os.close(writing)
    assert (finished.returncode, finished.stderr) == (1, "")


def test_ctrl_c_ends_training_with_a_checkpoint_and_says_how_to_go_on(folder: Path) -> None:
    (folder / "pictures").mkdir()
    for index in range(4):
        Image.new("RGB", (8, 8), (60 * index, 0, 0)).save(folder / "pictures" / f"{index}.png")
        (folder / "pictures" / f"{index}.txt").write_text(f"number {index}")
    model = "[model]\nblock_channels = [8, 16]\nlayers_per_block = 1\nnorm_groups = 1\n"
    (folder / "long.toml").write_text(
        f"crop = 8\n[run]\nsteps = 1000000\nbatch = 2\nvalidate_every = 0\nlog_every = 1\n{model}"
    )
    words = ("--data", "pictures", "--out", "run", "--device", "cpu", "--threads", "1")
    process = start("train", "autoencoder", "long.toml", *words)
    assert process.stderr is not None
    assert any("step 3 of 1000000" in line for line in process.stderr)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    last = err.splitlines()[-1]
    assert (process.returncode, out) == (130, "")
    step = int(last.removeprefix("sfumato: stopped after step ").split(" ")[0])
    again = "go on with: sfumato train autoencoder --data pictures --out run"
    assert last == f"sfumato: stopped after step {step} of 1000000, with a checkpoint; {again}"
    assert (folder / "run" / "checkpoints" / f"step-{step:08d}.safetensors").is_file()
