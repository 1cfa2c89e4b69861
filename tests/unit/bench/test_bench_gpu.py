"""The logic of `make gpu-bench`, on the processor: what it writes, also where something is missing or too slow."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT))
from benchmarks import gpu  # noqa: E402

pytestmark = pytest.mark.timeout(900)  # each starts several processes, which import torch anew


def test_one_json_says_what_was_measured_and_what_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "CONTENDERS", ("eager", "graph"))
    (tmp_path / "test_it.py").write_text("import pytest\n@pytest.mark.gpu\ndef test_it():\n    assert True\n")
    out = tmp_path / "gpu.json"
    small = ["--device", "cpu", "--model", "pocket", "--size", "32", "--steps", "2", "--batch", "2"]
    assert gpu.main([*small, "--tests", str(tmp_path), "--out", str(out)]) == 0
    report = json.loads(out.read_text())
    assert report["tests"]["counts"] == {"passed": 1}
    assert report["one"]["plan"]["image_steps"] == 2
    rows = {row["name"]: row for row in report["one"]["contenders"]}
    assert list(rows) == ["eager", "graph"]
    assert rows["graph"]["not_measured"] == "eager runs in its place here"  # it is for GPUs
    assert rows["eager"]["relative_error"] == 0.0
    assert len(rows["eager"]["seconds"]["image"]) == gpu.ROUNDS
    together = report["many"]["contenders"][0]["median"]["image"]
    assert report["reached"]["pictures_a_second"] == 2 / together
    assert report["reached"]["over_compiled_diffusers"] is None  # it was left out


def test_a_failing_test_fails_the_run_and_is_told(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text("import pytest\n@pytest.mark.gpu\ndef test_it():\n    assert 1 == 2\n")
    found = gpu._run_tests(tmp_path, 100.0)
    assert not found["passed"]
    assert "assert 1 == 2" in found["output"]
    (tmp_path / "test_it.py").write_text("import time\nprint('slow', flush=True)\ntime.sleep(60)\n")
    assert gpu._run_tests(tmp_path, 3.0)["summary"] == "not done in 3 s"


def test_the_fastest_of_ours_is_compared_with_compiled_diffusers() -> None:
    def row(name: str, seconds: float) -> dict[str, object]:
        return {"name": name, "median": {"image": seconds}}

    one = {"contenders": [row("diffusers-compile", 0.9), row("eager", 0.8), row("winograd", 0.5)]}
    many = {"plan": {"batch": 8}, "contenders": [row("eager", 2.0), {"name": "winograd", "not_measured": "slow"}]}
    assert gpu.reached(one, many) == {
        "engine": "winograd",
        "seconds_a_picture": 0.5,
        "pictures_a_second": 4.0,
        "over_compiled_diffusers": 1.8,
    }
    nothing = {"failed": "no memory", "plan": {"batch": 8}}
    assert set(gpu.reached(nothing, nothing).values()) == {None}


def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert gpu.main([]) == 1
    assert "needs a CUDA device" in capsys.readouterr().err


def test_wheels_that_cannot_be_installed_are_told(tmp_path: Path) -> None:
    assert gpu._unpack(tmp_path, tmp_path / "to") == f"no wheels in {tmp_path}"
    (tmp_path / "diffusers-0.1-py3-none-any.whl").write_bytes(b"not a wheel")
    assert gpu._unpack(tmp_path, tmp_path / "to").startswith("could not be installed")
