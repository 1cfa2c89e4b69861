"""The Hub, against the real client talking to a small server of our own: what is fetched, and each error's advice."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sfumato.errors import HubError, InvalidRequest
from sfumato.modelfiles.hub import download, is_hub_id, wanted_files

COMMIT = "0123456789abcdef0123456789abcdef01234567"

# What CompVis/stable-diffusion-v1-4 has, by name.
V1_4 = [
    *(".gitattributes", "README.md", "model_index.json", "pipeline.py", "feature_extractor/preprocessor_config.json"),
    *(f"safety_checker/{name}" for name in ("config.json", "flax_model.msgpack", "pytorch_model.fp16.bin")),
    *(f"safety_checker/{name}" for name in ("model.fp16.safetensors", "model.safetensors", "pytorch_model.bin")),
    *("scheduler/scheduler_config.json", "text_encoder/config.json", "text_encoder/pytorch_model.bin"),
    *("text_encoder/model.fp16.safetensors", "text_encoder/model.safetensors", "tokenizer/merges.txt"),
    *("tokenizer/special_tokens_map.json", "tokenizer/tokenizer_config.json", "tokenizer/vocab.json"),
    *(f"unet/diffusion_pytorch_model{kind}" for kind in (".bin", ".fp16.safetensors", ".safetensors")),
    *("unet/diffusion_pytorch_model.non_ema.safetensors", "unet/code.py", "unet/config.json", "vae/config.json"),
    *("vae/diffusion_pytorch_model.bin", "vae/diffusion_pytorch_model.safetensors"),
]

CONFIGURATIONS = [
    "README.md",
    "model_index.json",
    "feature_extractor/preprocessor_config.json",
    "safety_checker/config.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "tokenizer/merges.txt",
    "tokenizer/special_tokens_map.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/vocab.json",
    "unet/config.json",
    "vae/config.json",
]


@pytest.mark.parametrize(
    ("variant", "weights"),
    [
        (
            None,
            [
                "safety_checker/model",
                "text_encoder/model",
                "unet/diffusion_pytorch_model",
                "vae/diffusion_pytorch_model",
            ],
        ),
        (
            "fp16",
            [
                "safety_checker/model.fp16",
                "text_encoder/model.fp16",
                "unet/diffusion_pytorch_model.fp16",
                "vae/diffusion_pytorch_model",
            ],
        ),
    ],
)
def test_only_what_a_pipeline_needs_is_wanted(variant: str | None, weights: list[str]) -> None:
    assert sorted(wanted_files("a/b", V1_4, variant=variant)) == sorted(
        CONFIGURATIONS + [f"{name}.safetensors" for name in weights]
    )


def test_pickles_only_where_there_is_nothing_else() -> None:
    names = [
        "model_index.json",
        "unet/diffusion_pytorch_model.bin",
        "unet/diffusion_pytorch_model.fp16.bin",
        "vae/model.safetensors",
    ]
    assert wanted_files("a/b", names) == [
        "model_index.json",
        "unet/diffusion_pytorch_model.bin",
        "vae/model.safetensors",
    ]


def test_shards_come_with_their_index() -> None:
    shards = [f"unet/diffusion_pytorch_model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    half = [f"unet/diffusion_pytorch_model.fp16-0000{number}-of-00002.safetensors" for number in (1, 2)]
    indexes = [f"unet/diffusion_pytorch_model.safetensors.index{kind}.json" for kind in ("", ".fp16")]
    names = ["model_index.json", *shards, *half, *indexes]
    assert set(wanted_files("a/b", names)) == {"model_index.json", *shards, indexes[0]}
    assert set(wanted_files("a/b", names, variant="fp16")) == {"model_index.json", *half, indexes[1]}


def test_a_single_file_repository() -> None:
    assert wanted_files("a/b", ["README.md", "v1.ckpt", "config.yaml"]) == ["v1.ckpt"]
    with pytest.raises(HubError, match=r"a/b: not a v1 pipeline.*one\.ckpt, two\.safetensors"):
        wanted_files("a/b", ["one.ckpt", "two.safetensors"])
    with pytest.raises(HubError, match="no weight file"):
        wanted_files("a/b", ["README.md", "train.py"])


@pytest.mark.parametrize("text", ["CompVis/stable-diffusion-v1-4", "a/b", "a.b/c_d-e"])
def test_hub_ids(text: str) -> None:
    assert is_hub_id(text)


@pytest.mark.parametrize(
    "text", ["", "a", "a/b/c", "../b", "a/..", "/a", "a/", "a b/c", "a/b\n", "é/b", "a--b/c", "https://x/y"]
)
def test_what_is_no_hub_id(text: str) -> None:
    assert not is_hub_id(text)
    with pytest.raises(InvalidRequest, match="is not a Hub id"):
        download(text)


FILES = {
    "model_index.json": b"{}",
    "README.md": b"# A model",
    "text_encoder/model.safetensors": b"t" * 1000,
    "unet/diffusion_pytorch_model.safetensors": b"u" * 300_000,
    "unet/diffusion_pytorch_model.bin": b"never fetched",
    "unet/evil.py": b"never fetched",
    "vae/diffusion_pytorch_model.safetensors": b"v" * 2000,
}
# Answers to a question about a repository: status, and the Hub's own error code.
REFUSED = {
    "who/gated": (403, "GatedRepo"),
    "who/missing": (404, "RepoNotFound"),
    "who/private": (401, "RepoNotFound"),
    "who/badtoken": (401, None),
    "who/forbidden": (403, None),
    "who/busy": (429, None),
    "who/broken": (500, None),
}


class FakeHub(http.server.BaseHTTPRequestHandler):
    """As much of the Hub's protocol as its client needs to fetch a model."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        path = self.path.partition("?")[0].replace("%2F", "/")
        repository = "/".join(path.removeprefix("/api/models").strip("/").split("/")[:2])
        if repository == "who/portal":
            self.answer(200, b"<html>Welcome to our network</html>", {"Content-Type": "text/html"})
        elif repository in REFUSED:
            status, code = REFUSED[repository]
            self.answer(status, b"{}", {"X-Error-Code": code} if code else {})
        elif path.startswith("/api/models/"):
            revision = path.partition("/revision/")[2] or "main"
            if revision not in ("main", COMMIT):
                self.answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            else:
                siblings = [self.sibling(name, data) for name, data in FILES.items()]
                self.answer(200, json.dumps({"id": repository, "sha": COMMIT, "siblings": siblings}).encode())
        else:
            data = FILES[path.split("/resolve/")[1].partition("/")[2]]
            etag = hashlib.sha256(data).hexdigest()
            if repository == "who/tampered" and self.server.tampers:
                data = data.swapcase()
            self.answer(200, data, {"X-Repo-Commit": COMMIT, "ETag": f'"{etag}"'}, short=repository == "who/short")

    do_HEAD = do_GET  # noqa: N815 - the name http.server looks for

    def sibling(self, name: str, data: bytes) -> dict[str, Any]:
        """What is said of a file; weights are in LFS, and named by their hash."""
        about: dict[str, Any] = {"rfilename": name, "size": len(data)}
        if name.endswith((".safetensors", ".bin")):
            about["lfs"] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest(), "pointerSize": 130}
        return about

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None, *, short: bool = False) -> None:
        self.send_response(status)
        for name, value in {
            "Content-Length": str(len(body)),
            "Content-Type": "application/json",
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[: len(body) // 2] if short else body)
            self.close_connection = short

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def fake_hub() -> Iterator[http.server.ThreadingHTTPServer]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), FakeHub)
    server.asked, server.tampers = [], True
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def run(program: str, endpoint: str, home: Path, **environment: str) -> Any:
    """Run `program` in a fresh process, since the client reads its settings when imported; returns what it prints."""
    settings = {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home / "hf"),
        "SFUMATO_HOME": str(home / "sfumato"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("HF_", "SFUMATO_")) and "proxy" not in name.lower()
    }
    command = [
        sys.executable,
        "-c",
        "import json\nfrom sfumato.errors import SfumatoError\n"
        "from sfumato.modelfiles import hub, library_index as registry, model_library as store\n" + program,
    ]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env=inherited | {"PYTHONPATH": ":".join(sys.path)} | settings | environment,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stderr == ""
    return json.loads(done.stdout)


PULL = """
events = []
location = store.pull("who/model", on_progress=events.append)
again = store.resolve("model")
same = store.resolve("who/model", installed_only=True)
checks = store.verify("model")
print(json.dumps({
    "path": str(location.path), "kind": location.kind, "revision": location.revision,
    "same": again == location == same,
    "steps": [(e.stage, e.step, e.steps) for e in events],
    "files": sorted(str(p.relative_to(location.path)) for p in location.path.rglob("*") if p.is_file()),
    "verified": {check.file: check.ok for check in checks},
}))
"""


def test_pull(fake_hub: http.server.ThreadingHTTPServer, tmp_path: Path) -> None:
    endpoint = f"http://127.0.0.1:{fake_hub.server_port}"
    result = run(PULL, endpoint, tmp_path)
    fetched = sorted(name for name in FILES if "evil" not in name and not name.endswith(".bin"))
    assert result["files"] == fetched
    assert (result["kind"], result["revision"], result["same"]) == ("folder", COMMIT, True)
    total = sum(len(FILES[name]) for name in fetched)
    assert result["steps"][-1] == ["download", total, total]
    assert all(stage == "download" and 0 <= step <= total == steps for stage, step, steps in result["steps"])
    assert result["verified"] == {name: True for name in fetched if name.endswith(".safetensors")}
    assert not any("evil" in path or path.endswith(".bin") for path in fake_hub.asked)

    # Without the Hub: what is there is found, by its id too; what isn't is one line of advice.
    fake_hub.shutdown()
    fake_hub.server_close()
    offline = """
def message(name, **options):
    try:
        return str(store.resolve(name, **options).path)
    except SfumatoError as error:
        return f"{type(error).__name__}: {error}"
(registry.data_dir() / "models.json").unlink()
found = [message("who/model"), message("who/model", offline=True)]
print(json.dumps([*found, message("who/other"), message("v1-4"), message("who/other", offline=True)]))
"""
    for environment in ({}, {"HF_HUB_OFFLINE": "1"}):
        by_id, by_id_offline, other, alias, other_offline = run(offline, endpoint, tmp_path, **environment)
        assert by_id == by_id_offline == result["path"]
        assert "can't be" in other
        assert other.startswith("HubError: who/other: ")
        assert alias.startswith("ModelNotFound: v1-4 is CompVis/stable-diffusion-v1-4, which is not on this machine")
        assert alias.endswith("`sfumato models pull v1-4`")
        assert "not on this machine" in other_offline
        (tmp_path / "sfumato" / "models.json").write_text('{"version": 1, "models": {}}')


ERRORS = """
def message(name, **options):
    try:
        hub.download(name, **options)
        return "downloaded"
    except SfumatoError as error:
        return f"{type(error).__name__}: {error}"
names = ["gated", "missing", "private", "badtoken", "forbidden", "busy", "broken", "portal", "short"]
messages = {name: message(f"who/{name}", token="hf_x") for name in names}
print(json.dumps(messages | {"revision": message("who/model", revision="v9")}))
"""


def test_each_error_says_what_to_do(fake_hub: http.server.ThreadingHTTPServer, tmp_path: Path) -> None:
    messages = run(ERRORS, f"http://127.0.0.1:{fake_hub.server_port}", tmp_path)
    expected = {
        "gated": "accept its licence at https://huggingface.co/who/gated, then log in with `hf auth login` or set",
        "missing": "no such repository",
        "private": "if it is private, log in with `hf auth login`",
        "badtoken": "the token is not valid",
        "forbidden": "the token does not allow it",
        "busy": "too many requests",
        "broken": "the Hub answered with status 500",
        "portal": "what answers is not the Hub: log in to this network",
        "short": "the download broke off before its end: try again",
        "revision": "has no revision 'v9'",
    }
    for name, reason in expected.items():
        assert reason in messages[name], name
        assert messages[name].startswith("HubError: who/")
        assert "\n" not in messages[name]


def test_an_interrupted_download_is_not_taken_for_a_model(
    fake_hub: http.server.ThreadingHTTPServer, tmp_path: Path
) -> None:
    program = """
import pathlib
location = store.resolve("who/model")
(location.path / "vae/diffusion_pytorch_model.safetensors").unlink()
try:
    hub.cached("who/model")
except SfumatoError as error:
    message = str(error)
again = store.resolve("who/model")
print(json.dumps([message, (again.path / "vae/diffusion_pytorch_model.safetensors").stat().st_size]))
"""
    message, size = run(program, f"http://127.0.0.1:{fake_hub.server_port}", tmp_path)
    assert "lacks the vae" in message
    assert size == 2000


def test_rm_frees_what_pull_fetched(fake_hub: http.server.ThreadingHTTPServer, tmp_path: Path) -> None:
    program = """
location = store.pull("who/model")
freed = store.remove("model", delete_files=True)
print(json.dumps([freed, location.path.exists(), [model.name for model in store.list_models()]]))
"""
    freed, exists, names = run(program, f"http://127.0.0.1:{fake_hub.server_port}", tmp_path)
    assert freed > 300_000
    assert not exists
    assert names == ["pocket"]


def test_bytes_that_the_hub_does_not_name_are_refused_and_fetched_anew(
    fake_hub: http.server.ThreadingHTTPServer, tmp_path: Path
) -> None:
    program = """
def pull():
    try:
        location = store.pull("who/tampered")
    except SfumatoError as error:
        return str(error), [], {}
    files = sorted(str(p.relative_to(location.path)) for p in location.path.rglob("*.safetensors"))
    return "", files, {check.file: check.ok for check in store.verify("who/tampered")}
print(json.dumps([*pull(), [model.name for model in store.list_models()]]))
"""
    endpoint = f"http://127.0.0.1:{fake_hub.server_port}"
    said, _, _, names = run(program, endpoint, tmp_path)
    assert said.startswith("who/tampered: text_encoder/model.safetensors came with other bytes than the Hub names")
    assert names == ["pocket"]
    fake_hub.tampers = False
    said, files, checks, names = run(program, endpoint, tmp_path)
    assert (said, names) == ("", ["pocket", "tampered"] if names[0] == "pocket" else ["tampered", "pocket"])
    assert checks == dict.fromkeys(files, True) and len(files) == 3
