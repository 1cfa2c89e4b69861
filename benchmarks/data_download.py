"""Run img2dataset against a web server of our own that behaves as the web does.

    SFUMATO_IMG2DATASET=PATH/TO/img2dataset python -m benchmarks data_download

Good, dead, slow, huge, redirecting, forbidding and opted-out addresses, and some that aren't pictures. Prints what
`sfumato data download` counted beside what the server knows to be right.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import duckdb
import numpy as np
from PIL import Image

EACH = 25
KINDS = {
    "good": "picture",
    "redirected": "picture",
    "other-robots": "picture",
    "dead": "gone",
    "secret": "forbidden",
    "broken": "server error",
    "slow": "timeout",
    "huge": "wrong size",
    "tiny": "wrong size",
    "page": "no picture",
    "cut": "no picture",
    "empty": "no picture",
    "circle": "endless redirects",
    "noai": "opted out",
    "noindex": "opted out",
    "refused": "connection",
    "nowhere": "no such host",
}


def picture(width: int, height: int, seed: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    Image.fromarray(pixels).resize((width, height)).save(buffer, "JPEG")
    return buffer.getvalue()


def huge() -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (12_000, 12_000), 128).save(buffer, "PNG")
    return buffer.getvalue()


HUGE = huge()


class Web(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        kind, number = self.path.strip("/").split("/")[:2]
        getattr(self, f"answer_{kind.replace('-', '_')}")(int(number))

    def reply(self, code: int, body: bytes = b"", kind: str = "image/jpeg", **headers: str) -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def answer_good(self, number: int) -> None:
        self.reply(200, picture(640 + 8 * number, 480, number))

    def answer_redirected(self, number: int) -> None:
        self.reply(302, Location=f"/good/{number}")

    def answer_other_robots(self, number: int) -> None:
        self.reply(200, picture(600, 600, number), X_Robots_Tag="otherbot: noai")

    def answer_dead(self, number: int) -> None:
        self.reply(404 if number % 2 else 410)

    def answer_secret(self, number: int) -> None:
        self.reply(403)

    def answer_broken(self, number: int) -> None:
        self.reply(503)

    def answer_slow(self, number: int) -> None:
        time.sleep(6)
        self.reply(200, picture(640, 480, number))

    def answer_huge(self, number: int) -> None:
        self.reply(200, HUGE, "image/png")

    def answer_tiny(self, number: int) -> None:
        self.reply(200, picture(64, 64, number))

    def answer_page(self, number: int) -> None:
        self.reply(200, b"<html>not a picture</html>", "text/html")

    def answer_cut(self, number: int) -> None:
        self.reply(200, picture(640, 480, number)[:300])

    def answer_empty(self, number: int) -> None:
        self.reply(200)

    def answer_circle(self, number: int) -> None:
        self.reply(302, Location=f"/circle/{number}")

    def answer_noai(self, number: int) -> None:
        self.reply(200, picture(640, 480, number), X_Robots_Tag="noai, noimageai")

    def answer_noindex(self, number: int) -> None:
        self.reply(200, picture(640, 480, number), X_Robots_Tag="noindex")

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
        pass

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):  # from those who don't wait for the slow ones
            super().handle()


def addresses(port: int) -> list[tuple[str, str]]:
    hosts = {"refused": "http://127.0.0.1:9", "nowhere": "http://no-such-host.invalid"}
    return [
        (
            f"{hosts.get(kind, f'http://127.0.0.1:{port}')}/{kind}/{i}.jpg".replace(".jpg", "/x.jpg"),
            f"{kind} number {i}",
        )
        for i in range(EACH)
        for kind in KINDS
    ]


def main() -> None:
    downloader = os.environ.get("SFUMATO_IMG2DATASET")
    if not downloader:
        print("left out: SFUMATO_IMG2DATASET must be the path of img2dataset")
        return
    server = ThreadingHTTPServer(("127.0.0.1", 0), Web)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory() as work:
        rows = duckdb.connect()
        rows.execute("CREATE TABLE list (URL VARCHAR, TEXT VARCHAR, WIDTH INT)")
        rows.executemany("INSERT INTO list VALUES (?, ?, 640)", addresses(server.server_port))
        rows.execute(f"COPY list TO '{work}/list.parquet' (FORMAT parquet)")
        command = [sys.executable, "-c", "from sfumato.cli.entry import main; main()", "data", "download"]
        options = ["-o", f"{work}/pictures", "--downloader", downloader, "--size", "256", "--min-side", "128"]
        began = time.perf_counter()
        arguments = [*command, f"{work}/list.parquet", *options, "--timeout", "3", "--per-shard", "100", "--json"]
        done = subprocess.run(arguments, stdout=subprocess.PIPE, check=False)
        print(f"{time.perf_counter() - began:.0f} s")
        if done.returncode:
            print(Path(work, "pictures", "download.log").read_text()[-3000:])
            raise SystemExit(done.returncode)
        report = json.loads(done.stdout)
        found = {"picture": report["pictures"], **report["errors"]}
        right = {outcome: EACH * list(KINDS.values()).count(outcome) for outcome in KINDS.values()}
        for outcome in sorted({*found, *right}):
            counted, known = found.get(outcome, 0), right.get(outcome, 0)
            print(f"{'   ' if counted == known else '!! '}{outcome:18} counted {counted:4}, right {known:4}")
        for message, number in report["messages"].items():
            print(f"   {number:4} {message}")
        verified = subprocess.run([*command[:-1], "verify", f"{work}/pictures"], check=False)
        if found != right or verified.returncode:
            raise SystemExit("not as it should be")


if __name__ == "__main__":
    main()
