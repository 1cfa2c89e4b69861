"""A GPU measured within eight minutes: its tests, one picture and many at a time, beside diffusers eager and compiled.

`make gpu-bench` runs it with the machine's own python3 and torch, and no network: what isn't installed there is named
in the JSON, which is written anew after each turn. v1-4's shapes with random weights, 512×512, 50 steps of PLMS.
`--seconds` is for all of it: what is compiled comes last, and is left out where the time is over. The tests run while
it compiles and nobody is timed. With `--device cpu --model pocket` the logic can be tried where there is no GPU.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.gpu_turns import Turns
from sfumato.bench.bench_plan import Plan
from sfumato.bench.contender_processes import answers_folder
from sfumato.bench.contenders import catalog
from sfumato.bench.results import document
from sfumato.bench.subject import model_folder
from sfumato.files import write_text

SECONDS = 460.0  # for everything
ROUNDS, ROUNDS_OF_MANY = 3, 2
STEPS = 20  # guided steps in a turn, beside a picture's
# In this order: what is most worth knowing first. Those that compile are timed after the others.
CONTENDERS = ("eager", "graph", "diffusers", "compile", "diffusers-compile")
_TO_END = 5.0  # seconds, for processes to end in
_TESTERS = 6  # processes that test at a time
_OUTPUT = 20_000  # characters of what failing tests said
COMPILED = frozenset({"compile", "diffusers-compile"})
# docs/performance.md: seconds a picture at most, pictures a second at least, times faster than compiled diffusers.
GOALS = {"seconds_a_picture": 0.57, "pictures_a_second": 4.0, "over_compiled_diffusers": 1.3}


def main(arguments: Sequence[str] = ()) -> int:
    """Exit code 0 if the tests passed and at least one of our engines was measured."""
    chosen = _parse(arguments)
    if chosen.device == "cuda" and (reason := _no_cuda()):
        print(f"sfumato: {reason}: make gpu-bench needs a CUDA device and a torch that sees it", file=sys.stderr)
        return 1
    began = time.monotonic()
    with TemporaryDirectory(prefix="sfumato-wheels-") as folder:
        wheels = _unpack(chosen.wheels, Path(folder)) if chosen.wheels else None
        return _run(chosen, began, {"goals": GOALS, "wheels": wheels})


def _run(chosen: argparse.Namespace, began: float, report: dict[str, Any]) -> int:
    report["tests"] = None

    def save() -> None:
        report["seconds"] = round(time.monotonic() - began, 1)
        write_text(chosen.out, json.dumps(report, indent=2) + "\n", overwrite=True)

    def save_turns(turns: Turns) -> None:
        report["one"], report["many"] = map(document, turns.results())
        report["reached"] = reached(report["one"], report["many"])
        save()

    def test(seconds: float) -> None:
        if chosen.tests:
            report["tests"] = _run_tests(chosen.tests, seconds)
            _say(f"tests: {report['tests']['summary']}")
            save()

    save()
    shared: dict[str, Any] = {"model": chosen.model, "size": chosen.size, "device": chosen.device, "fresh": False}
    shared |= {"image_steps": chosen.steps, "steps": min(STEPS, chosen.steps)}
    with answers_folder() as answers:
        turns = Turns(
            one=Plan(**shared, rounds=ROUNDS, what=("step", "image")),
            many=Plan(**shared, rounds=ROUNDS_OF_MANY, batch=chosen.batch, what=("image",)),
            contenders=[catalog()[name] for name in CONTENDERS],
            compiled=COMPILED,
            model=model_folder(chosen.model, on_turn=_say),
            answers=answers,
            until=began + chosen.seconds - _TO_END,
            save=save_turns,
            meanwhile=test,
            say=lambda words: _say(f"{time.monotonic() - began:6.1f} s  {words}"),
        )
        turns.run()
        save_turns(turns)
    print(table(report["one"], report["many"]))
    print(json.dumps({"reached": report["reached"], "seconds": report["seconds"], "written": str(chosen.out)}))
    passed = report["tests"] is None or report["tests"]["passed"]
    return 0 if passed and report["reached"]["engine"] is not None else 1


def table(one: dict[str, Any], many: dict[str, Any]) -> str:
    """A line for each contender: what it took, or why it wasn't measured."""
    lines = [f"{'':18}{'ms/step':>9}{'s/picture':>11}{'pictures/s':>12}{'GB':>7}{'first step s':>14}{'error':>10}"]
    for row, together in zip(one["contenders"], many["contenders"], strict=True):
        if "not_measured" in row:
            lines.append(f"{row['name']:18}{row['not_measured']}")
            continue
        rate = _image_seconds(many).get(row["name"])
        cells = (
            (row["median"].get("step"), 1e3, 9, ".2f"),
            (row["median"].get("image"), 1.0, 11, ".3f"),
            (many["plan"]["batch"] / rate if rate else None, 1.0, 12, ".2f"),
            (row["device_peak_bytes"], 1e-9, 7, ".1f"),
            (row["first_step"][0] if row["first_step"] else None, 1.0, 14, ".1f"),
            (row["relative_error"], 1.0, 10, ".1e"),
        )
        told = [
            " " * width if value is None else f"{value * unit:>{width}{kind}}" for value, unit, width, kind in cells
        ]
        lines.append(f"{row['name']:18}{''.join(told)}  {row['ended'] or together.get('not_measured', '')}".rstrip())
    return "\n".join(lines)


def reached(one: dict[str, Any], many: dict[str, Any]) -> dict[str, Any]:
    """The goals' figures of our fastest engine; None for what couldn't be measured."""
    ours, seconds = _fastest(one)
    _, together = _fastest(many)
    compiled = _image_seconds(one).get("diffusers-compile")
    return {
        "engine": ours,
        "seconds_a_picture": seconds,
        "pictures_a_second": many["plan"]["batch"] / together if together else None,
        "over_compiled_diffusers": compiled / seconds if compiled and seconds else None,
    }


def _fastest(part: dict[str, Any]) -> tuple[str | None, float | None]:
    ours = {name: took for name, took in _image_seconds(part).items() if catalog()[name].kind == "engine"}
    name = min(ours, key=lambda name: ours[name], default=None)
    return name, ours[name] if name is not None else None


def _image_seconds(part: dict[str, Any]) -> dict[str, float]:
    medians = {row["name"]: row.get("median", {}).get("image") for row in part.get("contenders", ())}
    return {name: seconds for name, seconds in medians.items() if seconds is not None}


def _run_tests(folder: Path, seconds: float) -> dict[str, Any]:
    """The tests that need a GPU: whether all passed, and pytest's own last line."""
    if importlib.util.find_spec("pytest") is None:
        return {"passed": False, "summary": "pytest is not installed"}
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "--tb=short", "-p", "no:cacheprovider", str(folder)]
    if importlib.util.find_spec("xdist") is not None:  # each test is small, and most of its time is the processor's
        command += ["-n", str(max(1, min(_TESTERS, (os.cpu_count() or 1) // 2)))]
    if seconds <= 0.0:
        return {"passed": False, "summary": "no time was left for them"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired as error:
        output = error.stdout or b""
        return {"passed": False, "summary": f"not done in {seconds:.0f} s", "output": output.decode()[-_OUTPUT:]}
    lines = done.stdout.strip().splitlines()
    summary = lines[-1] if lines else done.stderr.strip()[-200:]
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|skipped|errors?)", summary)}
    result: dict[str, Any] = {"passed": done.returncode == 0, "summary": summary, "counts": counts}
    return result if done.returncode == 0 else result | {"output": done.stdout[-_OUTPUT:]}


def _unpack(wheels: Path, folder: Path) -> str:
    """Install carried wheels, without what they depend on, where only this run finds them; what came of it."""
    found = [str(path) for path in sorted(wheels.glob("*.whl"))]
    if not found:
        return f"no wheels in {wheels}"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile"]
    done = subprocess.run([*command, "--target", str(folder), *found], capture_output=True, text=True, check=False)
    if done.returncode:
        return f"could not be installed: {(done.stderr.strip().splitlines() or ['no reason given'])[-1]}"
    sys.path.insert(0, str(folder))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))
    return f"{len(found)} installed"


def _no_cuda() -> str:
    if importlib.util.find_spec("torch") is None:
        return "torch is not installed"
    import torch

    return "" if torch.cuda.is_available() else f"torch {torch.__version__} sees no CUDA device"


def _say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("gpu-bench.json"))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--model", default="v1")
    parser.add_argument("--size", type=int, default=None)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for everything (default %(default)s)")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--batch", type=int, default=8, help="pictures at a time, for throughput")
    parser.add_argument("--wheels", type=Path, default=None, help="a folder of wheels to take diffusers from")
    parser.add_argument("--tests", type=Path, default=Path("tests/gpu"))
    parser.add_argument("--without-tests", dest="tests", action="store_const", const=None)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
