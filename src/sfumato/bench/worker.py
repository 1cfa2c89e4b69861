"""One contender's process: it loads, and takes its turns when it is told to, one JSON line in, one out."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from sfumato.bench.bench_plan import Plan
from sfumato.bench.contenders import catalog

MACHINE = "machine"
"""In the place of a contender's name: the process that measures what the machine can do."""

_WARM_UPS = 2
_LINES = 12  # of a traceback

Answer = dict[str, Any]


def main() -> int:
    """Read what to be and what to do from stdin until it ends. Libraries that print to stdout print to stderr."""
    began = time.perf_counter()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever started this process ends it
    answers = _take_stdout()
    try:
        orders = json.loads(sys.stdin.readline())
        plan = Plan.from_values(orders["plan"])
        begin = _machine if orders["contender"] == MACHINE else _contender
        first, do = begin(orders["contender"], plan, Path(orders["model"]), Path(orders["answer"]), began)
        if orders["stepped"] and orders["contender"] != MACHINE:
            first |= do("first", None) | _peaks()
        _say(answers, first)
        for line in sys.stdin:
            order = json.loads(line)
            _say(answers, do(order["do"], order["with"]) | _peaks())
    except Exception as error:  # whatever a contender raises is its result, not this process's failure
        told = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        trace = "".join(traceback.format_exception(error)).splitlines()[-_LINES:]
        _say(answers, {"failed": told, "trace": trace})
        return 1
    return 0


Do = Callable[[str, Any], Answer]


def _contender(name: str, plan: Plan, model: Path, answer: Path, began: float) -> tuple[Answer, Do]:
    import torch

    if plan.threads is not None:
        torch.set_num_threads(plan.threads)
    from sfumato.bench.runners import load

    imported = time.perf_counter()
    runner = load(catalog()[name], plan, model)
    loaded, processor_load, private = time.perf_counter(), time.process_time(), private_bytes()
    first = {
        "runs": runner.runs,
        "dtype": runner.dtype,
        "imports": imported - began,
        "load": loaded - began,
        "processor_load": processor_load,
        "private": private,
        **_peaks(),
    }

    acts: dict[str, Callable[[Any], float]] = {
        "step": lambda count: runner.steps(count) / count,
        "decode": lambda _: runner.decode(),
        "image": lambda steps: runner.image(steps),
        "images": lambda how: runner.image(*how),
    }
    few = {"images": lambda how: (1, how[1])}
    warm = {"step"} if plan.device == "cpu" else set()

    def first_step() -> Answer:
        """Take the first step. Its time counts from the process's start, without what it may have waited since it has
        loaded."""
        began_step = time.perf_counter()
        runner.steps(1)
        stepped = time.perf_counter()
        if runner.answer is not None:
            import numpy as np

            with answer.open("wb") as file:
                np.save(file, runner.answer.numpy())
        seconds = loaded - began + stepped - began_step
        return {"first_step": seconds, "processor_first_step": time.process_time()}

    def do(what: str, count: Any) -> Answer:
        if what == "first":
            return first_step()
        if what not in warm:  # what is compiled, captured or converted on the way to the first answer
            for _ in range(_WARM_UPS):
                acts[what](few[what](count) if what in few else 1)
            warm.add(what)
        cpu = time.process_time()
        seconds = acts[what](count)
        return {"seconds": seconds, "processor_seconds": time.process_time() - cpu}

    return first, do


def _machine(name: str, plan: Plan, model: Path, answer: Path, began: float) -> tuple[Answer, Do]:
    import torch

    if plan.threads is not None:
        torch.set_num_threads(plan.threads)
    from sfumato.bench.machine_speed import Machine, operations

    machine = Machine(plan)
    return {"operations": operations(model, plan), **machine.facts()}, lambda what, dtype: {
        "gflops": machine.gemm(dtype)
    }


def _take_stdout() -> TextIO:
    """stdout for the answers alone, also where a library writes to it below Python."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answers


def _say(answers: TextIO, answer: Answer) -> None:
    answers.write(json.dumps(answer) + "\n")
    answers.flush()


def _peaks() -> Answer:
    """The most memory taken so far, in the machine and, where there is a CUDA device, on that."""
    import torch

    device = torch.cuda.max_memory_reserved() if torch.cuda.is_available() else None
    return {"peak": peak_bytes(), "device_peak": device}


def peak_bytes() -> int:
    """The most memory of this process that was resident at once, pages of mapped files among it."""
    found = _status("VmHWM")
    if found is not None:
        return found
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def private_bytes() -> int | None:
    """Resident memory that is no file's; None where the system doesn't say."""
    return _status("RssAnon")


def _status(name: str) -> int | None:
    try:
        found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


if __name__ == "__main__":
    sys.exit(main())
