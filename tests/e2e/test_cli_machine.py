"""`sfumato bench` and `sfumato doctor` as people run them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from sfumato.pipeline.presets import with_preset
from sfumato.report.evaluation import preset_quality
from support.command_line import Cli, files_in

pytestmark = pytest.mark.timeout(900)  # each starts several processes, which import torch anew

# Two engines, one thread, one round: as little as shows it all.
QUICK = ("--model", "pocket", "--threads", "1", "--rounds", "1", "--contenders", "eager,winograd-plain")


def test_bench_writes_a_table_json_and_a_plot(cli: Cli, folder: Path) -> None:
    outcome = cli("bench", *QUICK, "--size", "32", "--out", "r.json", "--json", "--plot", "r.svg")
    assert (outcome.code, outcome.errors) == (0, [])
    found = json.loads(outcome.out)
    assert found == json.loads(Path("r.json").read_text())
    assert [row["name"] for row in found["contenders"]] == ["eager", "winograd-plain"]
    assert found["contenders"][1]["relative_error"] < 1e-5
    assert found["compared_with"] == "eager"
    assert found["plan"]["size"] == 32
    assert files_in(folder) == ["r.json", "r.svg"]


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--rounds", "0"), "rounds 0"),
        (("--contenders", "winogard"), "did you mean 'winograd'"),
        (("--plot", "x.gif"), "'.gif'"),
        (("--quality", "x.bmp"), "'.bmp'"),
        (("--quality", "x.png", "--prompts", "absent.txt"), "absent.txt"),
        (("--quality", "x.png", "--out", "there.json"), "already exists"),
        (("--out", "there.json"), "already exists"),
        (("--json", "there.json"), "already exists"),  # as `--out` was called before
        (("--out", f"{'x' * 300}.json"), "the name is too long"),
        (("--plot", "/tmp", "--overwrite"), "is a folder"),
        (("there.json",), "no word beside its options"),
        (("--json", "a.json", "b.json"), "leave out 'a.json b.json'"),
        (("--model", "no-such-model"), "no model"),
    ],
)
def test_bench_refuses_before_any_work(cli: Cli, folder: Path, arguments: tuple[str, ...], word: str) -> None:
    Path("there.json").write_text("mine")
    outcome = cli("bench", *arguments)
    assert outcome.code != 0
    assert len(outcome.errors) == 1 and word in outcome.errors[0]
    assert files_in(folder) == ["there.json"]


def test_bench_shows_what_presets_give_up(cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In two steps each: fifty take too long here."""
    monkeypatch.setattr(preset_quality, "with_preset", lambda values: with_preset(values) | {"steps": 2})
    Path("prompts.txt").write_text("a red heart\n")
    outcome = cli("bench", "--quality", "s.png", "--prompts", "prompts.txt", "--json", "q.json")
    assert outcome.code == 0 and outcome.lines[-2:] == ["s.png", "q.json"]
    found = json.loads(Path("q.json").read_text())
    assert (found["model"], found["prompts"], list(found["presets"])) == ("pocket", 1, ["exact", "fast", "turbo"])
    assert found["presets"]["exact"]["psnr"] is None and 5 < found["presets"]["fast"]["psnr"] < 60
    assert [numbers["calls"] for numbers in found["presets"].values()] == [3, 2, 2]
    assert Image.open("s.png").width > 3 * 64


def test_ctrl_c_leaves_neither_files_nor_processes(folder: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    arguments = ["--model", "pocket", "--contenders", "eager", "--rounds", "1000", "--json", "r.json"]
    process = subprocess.Popen(
        [sys.executable, "-m", "sfumato.cli.entry", "bench", *arguments],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    while not (children := _children(process.pid)):
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out, err) == (130, "", "sfumato: stopped\n")
    assert files_in(folder) == []
    for _ in range(600):  # one that was only just started ends by itself, when it finds that nobody speaks to it
        if not any(Path(f"/proc/{child}").exists() for child in children):
            return
        time.sleep(0.1)
    pytest.fail(f"still running: {children}")


def _children(process: int) -> list[int]:
    text = Path(f"/proc/{process}/task/{process}/children").read_text()
    return [int(word) for word in text.split()]


def test_doctor_has_a_line_each_and_fails_only_where_something_is_broken(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SFUMATO_STEPZ", "3")
    outcome = cli("doctor")
    assert outcome.code == 0
    assert "SFUMATO_STEPZ is no setting → did you mean SFUMATO_STEPS?" in outcome.out
    monkeypatch.setenv("SFUMATO_STEPS", "none")
    outcome = cli("doctor", "--json")
    assert outcome.code == 1
    found = json.loads(outcome.out)
    assert found["broken"] is True
    (line,) = [finding for finding in found["findings"] if finding["state"] == "broken"]
    assert line["about"] == "settings" and "SFUMATO_STEPS" in line["seen"]


def test_models_are_warmed_and_the_cache_is_cleared(cli: Cli) -> None:
    outcome = cli("models", "warm", "pocket", "--json")
    assert outcome.code == 0
    made = json.loads(outcome.out)["entries"]
    assert [entry["part"] for entry in made] == ["text_encoder", "unet", "vae"]
    cold = cli("generate", "rocket", "--steps", "1", "--json")
    found = json.loads(cli("models", "cache", "--json").out)
    assert found["warm"] == made
    assert json.loads(cli("models", "cache", "--clear", "warm", "--json").out)["bytes_freed"] == found["bytes"]["warm"]
    warm = cli("generate", "rocket", "--steps", "1", "--json")
    pictures = [json.loads(outcome.out)["pictures"][0] for outcome in (cold, warm)]
    assert pictures[0]["pixels_sha256"] == pictures[1]["pixels_sha256"]
    outcome = cli("models", "cache", "--clear", "everything")
    assert (outcome.code, len(outcome.errors)) == (2, 1)
