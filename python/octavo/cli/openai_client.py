"""The little of an OpenAI-compatible API that the terminal commands need, on the standard library.

A server that is still loading is waited for; one that is not there is said to be not there.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import ssl
import time
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from octavo.cli.client_arguments import DEFAULT_URL
from octavo.errors import ConfigError, OctavoError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

CONNECT_S = 10.0
POLL_S = 0.2


class ServerError(OctavoError):
    """No server answers, or it answered with an error; the message is for people."""

    exit_code = 1


@dataclass
class Usage:
    """Token counts and times of one answer."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    first_s: float = 0.0
    whole_s: float = 0.0
    finish_reason: str = ""

    @property
    def tokens_per_s(self) -> float:
        """Speed after the first token."""
        seconds = self.whole_s - self.first_s
        return (self.completion_tokens - 1) / seconds if seconds > 0 else 0.0


@dataclass(frozen=True)
class Health:
    """What /health said: ready, or why not."""

    ready: bool
    phase: str = ""
    progress: float | None = None
    elapsed_s: float | None = None
    reason: str = ""


@dataclass
class Answer:
    """A streamed answer: iterate `texts()` once; `usage` is whole afterwards.

    Attributes:
        text: What has come so far.
        reasoning: What has come of the model's thoughts, where the server keeps them apart.
    """

    events: Iterator[dict[str, Any]]
    started_s: float
    usage: Usage = field(default_factory=Usage)
    text: str = ""
    reasoning: str = ""

    def texts(self) -> Iterator[str]:
        """The pieces of the answer as they arrive.

        Raises:
            ServerError: The server reports an error, or the connection breaks.
        """
        for event in self.events:
            self._note(event)
            for choice in event.get("choices") or []:
                delta = choice.get("delta") or choice
                self.reasoning += delta.get("reasoning_content") or delta.get("reasoning") or ""
                self.usage.finish_reason = choice.get("finish_reason") or self.usage.finish_reason
                piece = delta.get("content") or delta.get("text") or ""
                if piece:
                    self.text += piece
                    yield piece

    def _note(self, event: dict[str, Any]) -> None:
        if event.get("error"):
            raise ServerError(_message(event, "the server reports an error"))
        usage = self.usage
        usage.whole_s = time.monotonic() - self.started_s
        if event.get("choices"):
            usage.first_s = usage.first_s or usage.whole_s
            usage.completion_tokens += 1  # replaced by the server's own count, if it sends one
        if counts := event.get("usage"):
            usage.prompt_tokens = counts.get("prompt_tokens") or 0
            usage.completion_tokens = counts.get("completion_tokens") or 0
            details = counts.get("prompt_tokens_details") or {}
            usage.cached_tokens = details.get("cached_tokens") or 0


class OpenAIClient:
    """Talks to one server; a connection for each request.

    Args:
        url: http or https, with or without the trailing /v1.
        api_key: Sent as a bearer token unless empty.
        timeout_s: Longest silence inside an answer.
    """

    def __init__(self, url: str, api_key: str = "", timeout_s: float = 300.0) -> None:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"--url {url}: expected something like {DEFAULT_URL}")
        self.api_key = api_key
        self.url = parts.geturl().rstrip("/").removesuffix("/v1")
        self._secure = parts.scheme == "https"
        self._host, self._port = parts.hostname, parts.port
        self._root = parts.path.rstrip("/").removesuffix("/v1")
        self._timeout_s = timeout_s
        self._headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"

    def health(self) -> Health:
        """Whether the server is ready. One without /health counts as ready.

        Raises:
            ServerError: Nobody answers.
        """
        status, fields = self._get("/health")
        if status in (HTTPStatus.OK, HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED):
            return Health(ready=True)
        return Health(
            ready=False,
            phase=str(fields.get("phase") or fields.get("status") or f"HTTP {status}"),
            progress=fields.get("progress"),
            elapsed_s=fields.get("elapsed_s"),
            reason=str(fields.get("reason") or ""),
        )

    def wait_until_ready(self, report: Callable[[Health], None], patience_s: float) -> None:
        """Wait while the server loads; `report` is called with what it says meanwhile.

        Raises:
            ServerError: Nobody answers, the server has failed, or patience_s is over.
        """
        end_s = time.monotonic() + patience_s
        while not (health := self.health()).ready:
            if health.phase in ("failed", "unhealthy", "draining"):
                reason = f": {health.reason}" if health.reason else ""
                raise ServerError(f"The server at {self.url} is {health.phase}{reason}")
            if time.monotonic() > end_s:
                raise ServerError(
                    f"The server at {self.url} is still loading ({health.phase}) after "
                    f"{patience_s:.0f} s."
                )
            report(health)
            time.sleep(POLL_S)

    def models(self) -> list[str]:
        """The ids that the server serves.

        Raises:
            ServerError: Nobody answers, or not with a list of models.
        """
        status, fields = self._get("/v1/models")
        if status != HTTPStatus.OK:
            raise ServerError(f"{self.url}/v1/models: {_message(fields, f'HTTP {status}')}")
        return [str(card["id"]) for card in fields.get("data") or [] if "id" in card]

    def model(self, wanted: str = "") -> str:
        """`wanted`, or the first model that the server serves.

        Raises:
            ServerError: None is named and the server serves none.
        """
        if wanted:
            return wanted
        served = self.models()
        if not served:
            raise ServerError(f"{self.url} serves no model; name one with --model.")
        return served[0]

    @contextlib.contextmanager
    def stream(self, path: str, body: dict[str, Any]) -> Iterator[Answer]:
        """Post `body` with stream on; leaving the context hangs up, which ends the request.

        Raises:
            ServerError: Nobody answers, or the answer is an error.
        """
        started_s = time.monotonic()
        body = {**body, "stream": True, "stream_options": {"include_usage": True}}
        with contextlib.closing(self._connect()) as connection:
            response = self._exchange(connection, "POST", path, json.dumps(body).encode())
            if response.status != HTTPStatus.OK:
                message = _message(_fields(response.read()), f"HTTP {response.status}")
                raise ServerError(message)
            yield Answer(_events(response), started_s)

    def post(self, path: str, body: bytes) -> tuple[http.client.HTTPResponse, bytes]:
        """Post a JSON body; returns the response, whatever its status, and its body.

        Raises:
            ServerError: Nobody answers, or not to the end.
        """
        with contextlib.closing(self._connect()) as connection:
            response = self._exchange(connection, "POST", path, body)
            try:
                return response, response.read()
            except (OSError, http.client.HTTPException) as error:
                raise ServerError(f"{self.url} broke off its answer: {_reason(error)}") from None

    def _get(self, path: str) -> tuple[int, dict[str, Any]]:
        with contextlib.closing(self._connect()) as connection:
            response = self._exchange(connection, "GET", path, None)
            return response.status, _fields(response.read())

    def _connect(self) -> http.client.HTTPConnection:
        if self._secure:
            context = ssl.create_default_context()
            return http.client.HTTPSConnection(
                self._host, self._port, timeout=CONNECT_S, context=context
            )
        return http.client.HTTPConnection(self._host, self._port, timeout=CONNECT_S)

    def _exchange(
        self, connection: http.client.HTTPConnection, method: str, path: str, body: bytes | None
    ) -> http.client.HTTPResponse:
        try:
            connection.connect()
        except OSError as error:
            raise ServerError(self._absent(error)) from None
        try:
            connection.sock.settimeout(self._timeout_s)
            connection.request(method, self._root + path, body, self._headers)
            return connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            raise ServerError(f"{self.url} closed the connection: {_reason(error)}") from None

    def _absent(self, error: OSError) -> str:
        text = f"No server answers at {self.url} ({_reason(error)})."
        if self._host in ("127.0.0.1", "localhost", "::1"):
            text += "\nStart one with: octavo serve smollm2"
        return text


def _events(response: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    """The JSON events of a stream, up to [DONE]."""
    try:
        while line := response.readline():
            if line.startswith(b"data:"):
                data = line[5:].strip()
                if data == b"[DONE]":
                    return
                yield json.loads(data)
    except (OSError, http.client.HTTPException) as error:
        raise ServerError(f"The connection broke inside the answer: {_reason(error)}") from None
    except ValueError:
        raise ServerError("The server sent an event that is no JSON.") from None
    raise ServerError("The server ended the answer before it was whole.")


def _fields(data: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(data)
    except ValueError:
        return {}
    return fields if isinstance(fields, dict) else {}


def _message(fields: dict[str, Any], otherwise: str) -> str:
    """The message of an error body, in any of the shapes that servers use."""
    error = fields.get("error")
    if isinstance(error, dict):
        error = error.get("message")
    text = error or fields.get("message") or fields.get("detail")
    return (
        f"{otherwise}: {text}" if text and otherwise.startswith("HTTP") else str(text or otherwise)
    )


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "time-out"
    return str(getattr(error, "strerror", None) or error) or type(error).__name__


def from_arguments(arguments: argparse.Namespace) -> OpenAIClient:
    """The client that a command line asks for.

    The key of OPENAI_API_KEY goes to OPENAI_BASE_URL only, never to another server.

    Raises:
        ConfigError: The URL is none.
    """
    url, key = arguments.url, arguments.api_key
    if url is None and (url := os.environ.get("OPENAI_BASE_URL")):
        key = key or os.environ.get("OPENAI_API_KEY")
    return OpenAIClient(url or DEFAULT_URL, key or "", arguments.timeout)
