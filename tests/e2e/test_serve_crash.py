"""Real servers that are killed, stopped and started again: nothing accepted is lost, nothing is made twice."""

from __future__ import annotations

import hashlib
import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from support.serving import ServerProcess, events_of, server_process

JOBS, COUNT = 6, 3
KILLS = 20


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """A test that fails leaves no server behind."""
    yield
    for server in list(ServerProcess.running):
        server.kill()


def submit(server: ServerProcess, prompt: str, **body: Any) -> dict[str, Any]:
    """Hand in a job under its own key, as often as it takes."""
    request = {"prompt": prompt, "steps": 4, "seed": 5}
    reply = server.client.post(
        "/api/jobs", json={"request": request} | body, headers={"Idempotency-Key": prompt.replace(" ", "-")}
    )
    assert reply.status_code in (200, 202), reply.text
    return dict(reply.json())


def results(server: ServerProcess) -> dict[str, list[str]]:
    """Hash of each picture's bytes, by prompt, once all jobs have ended."""
    while True:
        jobs = [server.client.get(f"/api/jobs/{job['id']}").json() for job in listed(server)]
        if all(job["state"] not in ("queued", "running") for job in jobs):
            break
        time.sleep(0.05)
    assert {job["state"] for job in jobs} == {"finished"}
    return {
        job["request"]["prompt"]: [
            hashlib.sha256(server.client.get(picture["url"]).content).hexdigest() for picture in job["pictures"]
        ]
        for job in jobs
    }


def listed(server: ServerProcess) -> list[dict[str, Any]]:
    return list(server.client.get("/api/jobs?limit=200").json()["jobs"])


def test_twenty_kills_lose_nothing_repeat_nothing_and_change_no_byte(tmp_path: Path):
    prompts = [f"job {i}" for i in range(JOBS)]
    with server_process(tmp_path / "calm", seconds=0.0) as server:
        for prompt in prompts:
            submit(server, prompt, count=COUNT)
        undisturbed = results(server)

    folder = tmp_path / "disturbed"
    chance, accepted = random.Random(0), 0
    recorded: dict[str, float] = {}
    for _ in range(KILLS):
        server = ServerProcess(folder, seconds=0.01)
        end = time.monotonic() + chance.uniform(0.0, 0.5)
        while time.monotonic() < end:
            if accepted < JOBS:
                submit(server, prompts[accepted], count=COUNT)
                accepted += 1
            for picture in server.client.get("/api/pictures?limit=200").json()["pictures"]:
                assert recorded.setdefault(picture["id"], picture["created"]) == picture["created"]
            if chance.random() < 0.1:
                server.kill_worker()
        if chance.random() < 0.5:
            server.kill_worker()
        server.kill()
    with server_process(folder, seconds=0.0) as server:
        for prompt in prompts:  # a client that tries again with its key gets the job it has
            submit(server, prompt, count=COUNT)
        assert len(listed(server)) == JOBS
        assert results(server) == undisturbed
        for picture in server.client.get("/api/pictures?limit=200").json()["pictures"]:
            assert recorded.get(picture["id"], picture["created"]) == picture["created"]
        with server.client.stream("GET", "/api/events?after=0") as reply:
            told = take(events_of(reply.iter_lines()), until=lambda seen: seen.count("finished") == JOBS)
    ids = [identity for _, identity, _ in told if identity is not None]
    assert ids == list(range(1, len(ids) + 1))
    pictures = [(data["job"], data["number"]) for kind, _, data in told if kind == "picture"]
    assert len(pictures) == len(set(pictures)) == JOBS * COUNT


def take(events: Iterator[tuple[str, int | None, dict[str, Any]]], until: Any) -> list[Any]:
    """The events up to the one with which the kinds seen so far are enough."""
    taken, kinds = [], []
    for event in events:
        taken.append(event)
        kinds.append(event[0])
        if until(kinds):
            return taken
    raise AssertionError(f"the events ended with {kinds}")


def test_events_go_on_where_they_broke_off_even_across_a_restart(tmp_path: Path):
    server = ServerProcess(tmp_path / "served", seconds=0.02)
    job = submit(server, "long", count=6)
    seen: list[int] = []
    last: int | None = None
    kinds: list[str] = []
    for turn in range(40):
        headers = {"Last-Event-ID": str(last)} if last is not None else {}
        with server.client.stream("GET", f"/api/jobs/{job['id']}/events", headers=headers) as reply:
            if reply.status_code == 204:
                break
            kept = 0
            for kind, identity, _ in events_of(reply.iter_lines()):
                kinds.append(kind)
                if identity is not None:
                    seen += [identity] if kind != "snapshot" else []
                    last, kept = identity, kept + 1
                if kept == 2:
                    break  # the connection drops
        if turn == 2:
            server.kill()
            server = ServerProcess(tmp_path / "served", seconds=0.02)
    server.kill()
    assert kinds.count("picture") == 6
    assert kinds[-1] == "finished"
    assert "progress" in kinds and "preview" in kinds
    assert seen == sorted(set(seen))
    assert seen == list(range(seen[0], seen[-1] + 1))


def test_the_list_of_listeners_does_not_grow(tmp_path: Path):
    with server_process(tmp_path / "served") as server:
        for _ in range(50):
            with server.client.stream("GET", "/api/events") as reply:
                next(events_of(reply.iter_lines()))
        deadline = time.monotonic() + 10
        while "sfumato_event_streams 0.0" not in server.client.get("/metrics").text:
            assert time.monotonic() < deadline


def test_sigterm_finishes_the_picture_says_goodbye_and_exits_with_0(tmp_path: Path):
    server = ServerProcess(tmp_path / "served", seconds=0.5)
    submit(server, "long", count=3)
    with server.client.stream("GET", "/api/events") as reply:
        events = events_of(reply.iter_lines())
        take(events, until=lambda kinds: "progress" in kinds)
        began = time.monotonic()
        server.process.terminate()
        assert [kind for kind, _, _ in events][-1] == "bye"
        assert server.client.get("/readyz").status_code == 503  # the picture under way takes two seconds
        refused = server.client.post("/api/jobs", json={"request": {"prompt": "too late"}})
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
    assert server.process.wait(timeout=60) == 0
    assert time.monotonic() - began < 10
    with server_process(tmp_path / "served") as again:
        (job,) = listed(again)
        assert job["state"] in ("queued", "running")
        before = again.client.get(f"/api/jobs/{job['id']}").json()["pictures"]
        assert before  # the one that was under way
        assert len(results(again)["long"]) == 3


def test_a_second_signal_ends_it_at_once(tmp_path: Path):
    server = ServerProcess(tmp_path / "served", seconds=2.0)
    submit(server, "slow")
    while listed(server)[0]["state"] != "running":
        time.sleep(0.05)
    server.process.terminate()
    time.sleep(0.5)
    began = time.monotonic()
    assert server.stop() == 1
    assert time.monotonic() - began < 3


def refused(folder: Path, *options: str) -> str:
    """The one line a server says that doesn't start."""
    command = [sys.executable, "-m", "sfumato.cli.entry", "serve", "--folder", str(folder), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    (line,) = done.stderr.splitlines()
    return line


def test_what_keeps_a_server_from_starting_is_one_line(tmp_path: Path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert "choose another --port" in refused(tmp_path / "a", "--port", str(taken.getsockname()[1]))
    assert "no model 'pocktet'" in refused(tmp_path / "a", "--port", "0", "--model", "pocktet")
    assert "no API key" in refused(tmp_path / "a", "--host", "0.0.0.0", "--port", "0")
    (tmp_path / "file").write_text("")
    assert "file" in refused(tmp_path / "file", "--port", "0")
    if os.getuid():
        (tmp_path / "closed").mkdir(mode=0o500)
        assert "choose another folder" in refused(tmp_path / "closed", "--port", "0")


def test_a_second_server_on_one_folder_is_refused(tmp_path: Path):
    with server_process(tmp_path / "served"):
        assert "served by another process" in refused(tmp_path / "served", "--port", "0")


def test_overload_takes_what_fits_makes_all_of_it_and_stays_alive(tmp_path: Path):
    with server_process(tmp_path / "served", seconds=0.005, options=("--max-waiting", "16")) as server:
        codes: list[int] = []
        lock = threading.Lock()

        def post(i: int) -> None:
            with httpx2.Client(base_url=server.client.base_url, timeout=60) as client:
                reply = client.post("/api/jobs", json={"request": {"prompt": f"{i}", "steps": 2}})
                with lock:
                    codes.append(reply.status_code)

        threads = [threading.Thread(target=post, args=(i,)) for i in range(100)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            assert server.client.get("/livez").status_code == 200
        accepted = codes.count(202)
        assert accepted >= 16
        assert set(codes) == {202, 429}
        assert len(results(server)) == accepted


def test_the_front_never_imports_torch(tmp_path: Path):
    with server_process(tmp_path / "served") as server:
        submit(server, "one")
        results(server)
        maps = Path(f"/proc/{server.process.pid}/maps").read_text()
    assert "libtorch" not in maps


@pytest.mark.parametrize("prompt", ["a secret wish"])
def test_the_log_has_no_prompt_and_no_key(tmp_path: Path, prompt: str, monkeypatch: pytest.MonkeyPatch):
    key = "a key that nobody guesses"
    monkeypatch.setenv("SFUMATO_API_KEY", key)
    with server_process(tmp_path / "served") as server:
        assert server.client.get("/api/jobs", headers={"Authorization": f"Bearer {key}x"}).status_code == 401
        server.client.headers["Authorization"] = f"Bearer {key}"
        submit(server, prompt)
        results(server)
        server.client.post("/api/jobs", json={"request": {"prompt": prompt, "steps": prompt}})
    log = (tmp_path / "server.log").read_text()
    assert '"route": "/api/jobs"' in log
    assert prompt not in log and key not in log and "127.0.0.1" not in log
