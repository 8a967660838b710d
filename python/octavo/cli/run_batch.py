"""`octavo run-batch`: answer the requests of an OpenAI batch file, on any compatible server."""

from __future__ import annotations

import contextlib
import json
import sys
import time
import uuid
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octavo.cli import client_arguments
from octavo.errors import ConfigError, OctavoError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator
    from http.client import HTTPResponse
    from typing import TextIO

    from octavo.cli.openai_client import OpenAIClient

DESCRIPTION = """Send each line of a batch file, {"custom_id", "method": "POST", "url", "body"}, to
a server and write one line for each answer, in the order in which they come. Exits with 1 when a
request failed."""
URLS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings")
MAX_TRIES = 8
_BUSY = (429, 503)
_LONGEST_PAUSE_S = 30.0


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `run-batch` to the command line."""
    parser = subparsers.add_parser(
        "run-batch", help="answer the requests of a file", description=DESCRIPTION
    )
    parser.add_argument(
        "-i", "--input-file", required=True, metavar="FILE", help="requests, one JSON object a line"
    )
    parser.add_argument(
        "-o", "--output-file", required=True, metavar="FILE", help="answers; must not exist yet"
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on with an output file: skip what it has"
    )
    parser.add_argument(
        "--concurrency", type=int, default=64, metavar="N", help="requests at a time (default: 64)"
    )
    client_arguments.add_connection_arguments(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Answer the file.

    Raises:
        ConfigError: A file cannot be read or written, or a line is no request.
        ServerError: No server answers.
    """
    from octavo.cli import openai_client  # noqa: PLC0415 - --help needs none of it
    from octavo.cli.waiting import wait_until_ready  # noqa: PLC0415

    if arguments.concurrency < 1:
        raise ConfigError("--concurrency: must be at least 1")
    output = Path(arguments.output_file)
    done = finished_ids(output) if arguments.resume else set()
    requests = [each for each in read_requests(Path(arguments.input_file))
                if each["custom_id"] not in done]  # fmt: skip
    client = openai_client.from_arguments(arguments)
    wait_until_ready(client, arguments.wait)
    with open_output(output, resume=arguments.resume) as sink:
        num_failed = answer_all(client, requests, sink, arguments.concurrency)
    sys.stderr.write(f"{len(requests) - num_failed} answered, {num_failed} failed\n")
    return 1 if num_failed else 0


def read_requests(path: Path) -> list[dict[str, Any]]:
    """The requests of a batch file.

    Raises:
        ConfigError: It cannot be read, or a line is no request.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    requests = [
        _request(line, f"{path}, line {number}")
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]
    ids = [request["custom_id"] for request in requests]
    if len(set(ids)) != len(ids):
        twice = next(each for each in ids if ids.count(each) > 1)
        raise ConfigError(f"{path}: custom_id {twice!r} occurs twice.")
    return requests


def finished_ids(path: Path) -> set[str]:
    """The custom ids that an output file has; a line that was cut off does not count."""
    ids = set()
    if path.is_file():
        for line in path.read_text("utf-8").splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):
                ids.add(json.loads(line)["custom_id"])
    return ids


def open_output(path: Path, *, resume: bool) -> TextIO:
    """The output file.

    Raises:
        ConfigError: It exists already, or cannot be made.
    """
    try:
        return path.open("a" if resume else "x", encoding="utf-8")
    except FileExistsError:
        raise ConfigError(f"{path}: exists already; go on with --resume.") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error}") from None


def answer_all(
    client: OpenAIClient, requests: list[dict[str, Any]], sink: TextIO, concurrency: int
) -> int:
    """Send all requests; returns how many failed."""
    num_failed = 0
    with ThreadPoolExecutor(min(concurrency, len(requests) or 1)) as pool:
        waiting: set[Future[dict[str, Any]]] = {
            pool.submit(answer, client, request) for request in requests
        }
        for number, line in enumerate(_as_completed(waiting), start=1):
            sink.write(json.dumps(line, ensure_ascii=False) + "\n")
            sink.flush()
            num_failed += line["error"] is not None
            _show_progress(number, len(requests))
    return num_failed


def answer(client: OpenAIClient, request: dict[str, Any]) -> dict[str, Any]:
    """Send one request, again while the server is busy; returns its line of the output."""
    body = json.dumps(request["body"]).encode()
    line: dict[str, Any] = {
        "id": f"batch_req_{uuid.uuid4().hex}",
        "custom_id": request["custom_id"],
        "response": None,
        "error": None,
    }
    for attempt in range(MAX_TRIES):
        try:
            response, data = client.post(request["url"], body)
        except OctavoError as error:
            line["error"] = {"code": "no_answer", "message": str(error)}
            time.sleep(min(2.0**attempt * 0.1, _LONGEST_PAUSE_S))
            continue
        _take(line, response, data)
        if response.status not in _BUSY:
            break
        pause = response.headers.get("Retry-After", "1")
        time.sleep(min(float(pause) if pause.isdecimal() else 1.0, _LONGEST_PAUSE_S))
    return line


def _take(line: dict[str, Any], response: HTTPResponse, data: bytes) -> None:
    try:
        body = json.loads(data)
    except ValueError:
        body = {}
    line["response"] = {
        "status_code": response.status,
        "request_id": response.headers.get("X-Request-Id"),
        "body": body,
    }
    line["error"] = None
    if response.status != 200:
        error = body.get("error") if isinstance(body, dict) else None
        message = error.get("message") if isinstance(error, dict) else f"HTTP {response.status}"
        line["error"] = {"code": str(response.status), "message": message}


def _request(line: str, where: str) -> dict[str, Any]:
    try:
        request = json.loads(line)
    except (ValueError, RecursionError):
        raise ConfigError(f"{where}: is not JSON.") from None
    if not isinstance(request, dict):
        raise ConfigError(f"{where}: is not an object.")
    if not isinstance(request.get("custom_id"), str):
        raise ConfigError(f"{where}: custom_id must be a string.")
    if request.get("method", "POST") != "POST":
        raise ConfigError(f"{where}: method must be POST.")
    if request.get("url") not in URLS:
        raise ConfigError(f"{where}: url must be one of {', '.join(URLS)}.")
    if not isinstance(request.get("body"), dict):
        raise ConfigError(f"{where}: body must be an object.")
    request["body"]["stream"] = False
    return request


def _as_completed(waiting: set[Future[dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    """Results as they come; each is let go once it is given out."""
    while waiting:
        done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
        for future in done:
            yield future.result()


def _show_progress(number: int, total: int) -> None:
    if sys.stderr.isatty():
        end = "\n" if number == total else "\r"
        sys.stderr.write(f"{number} of {total}{end}")
        sys.stderr.flush()
