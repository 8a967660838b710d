"""`octavo run-batch` against a small server."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from octavo.cli.main import main

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Handler(BaseHTTPRequestHandler):
    """Answers with the prompt; one prompt is refused, one finds the server busy at first."""

    seen: ClassVar[list[str]] = []
    busy: ClassVar[int] = 0

    def do_GET(self) -> None:
        self.answer(200, {"status": "healthy"})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert body["stream"] is False
        prompt = body["prompt"]
        self.seen.append(prompt)
        if prompt == "bad":
            self.answer(400, {"error": {"message": "no such thing"}})
        elif prompt == "busy" and Handler.busy:
            Handler.busy -= 1
            self.answer(429, {"error": {"message": "later"}})
        else:
            self.answer(200, {"text": prompt})

    def answer(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("X-Request-Id", "r1")
        self.send_header("Retry-After", "0")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    Handler.seen.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def line(custom_id: str, prompt: str, /, **fields: Any) -> str:
    request = {"custom_id": custom_id, "method": "POST", "url": "/v1/completions"}
    return json.dumps({**request, "body": {"prompt": prompt}, **fields})


def run(url: str, tmp_path: Path, *lines: str, resume: bool = False) -> tuple[int, dict[str, Any]]:
    (tmp_path / "in.jsonl").write_text("\n".join(lines) + "\n")
    output = tmp_path / "out.jsonl"
    arguments = ["run-batch", "-i", str(tmp_path / "in.jsonl"), "-o", str(output), "--url", url]
    code = main([*arguments, "--resume"] if resume else arguments)
    written = output.read_text().splitlines() if output.is_file() else []
    answers = [json.loads(each) for each in written if each.endswith("}")]
    return code, {each["custom_id"]: each for each in answers}


def test_answers(url: str, tmp_path: Path) -> None:
    code, answers = run(url, tmp_path, *(line(f"c{i}", f"é{i}") for i in range(200)), "")
    assert code == 0
    assert len(answers) == 200
    response = answers["c7"]["response"]
    assert response == {"status_code": 200, "request_id": "r1", "body": {"text": "é7"}}
    assert answers["c7"]["error"] is None
    assert len({answer["id"] for answer in answers.values()}) == 200


def test_failures_are_told(url: str, tmp_path: Path) -> None:
    code, answers = run(url, tmp_path, line("a", "bad"), line("b", "good"))
    assert code == 1
    assert answers["a"]["error"] == {"code": "400", "message": "no such thing"}
    assert answers["b"]["response"]["status_code"] == 200


def test_busy_server_is_asked_again(url: str, tmp_path: Path) -> None:
    Handler.busy = 3
    code, answers = run(url, tmp_path, line("a", "busy"))
    assert code == 0
    assert answers["a"]["response"]["body"] == {"text": "busy"}
    assert Handler.seen == ["busy"] * 4


def test_resume(url: str, tmp_path: Path) -> None:
    run(url, tmp_path, line("a", "one"))
    Handler.seen.clear()
    lines = (line("a", "one"), line("b", "two"))
    assert run(url, tmp_path, *lines)[0] == 2  # the output exists
    code, answers = run(url, tmp_path, *lines, resume=True)
    assert code == 0
    assert set(answers) == {"a", "b"}
    assert Handler.seen == ["two"]


@pytest.mark.parametrize(
    "bad",
    [
        "{",
        "[]",
        line("a", "x", url="/v1/other"),
        line("a", "x", method="GET"),
        line("a", "x", body=None),
        line("a", "x", custom_id=5),
        line("a", "x") + "\n" + line("a", "y"),
    ],
)
def test_bad_lines(url: str, tmp_path: Path, bad: str) -> None:
    code, answers = run(url, tmp_path, bad)
    assert code == 2
    assert not answers
    assert not Handler.seen


def test_missing_file(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["run-batch", "-i", str(tmp_path / "no"), "-o", str(tmp_path / "o"), "--url", url]
    assert main(arguments) == 2
    assert "cannot be read" in capsys.readouterr().err
