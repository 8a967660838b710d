"""The demo model behind the real server, and the server as a library."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

import pytest

from e2e.serving import (
    GUNICORN,
    Answer,
    Launcher,
    Server,
    free_port,
    is_running,
    launcher,
    wait_for,
)
from octavo import EngineArgs, LLMEngine, create_openai_api_app, run_server
from octavo.errors import EngineError, ModelNotFoundError
from octavo.sampling_params import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DEMO = "smollm2"
PARIS = {"messages": [{"role": "user", "content": "What is the capital of France?"}]}
SMALL = {"load_format": "dummy", "kv_cache_memory_bytes": 64 << 20}


@dataclass
class Start:
    """A server of the demo, and what /health answered from exec until a while after ready."""

    server: Server
    answers: list[Answer | None]


@pytest.fixture(scope="module")
def demo_start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    with launcher(tmp_path_factory.mktemp("demo"), DEMO) as launch:
        server = launch(OCTAVO_LOAD_FORMAT="auto", OCTAVO_KV_CACHE_MEMORY_BYTES="512MiB")
        yield Start(server, follow(server))


def follow(server: Server, timeout: float = 180.0) -> list[Answer | None]:
    answers: list[Answer | None] = []
    deadline = time.monotonic() + timeout
    while sum(answer is not None and answer.status == 200 for answer in answers) < 20:
        assert time.monotonic() < deadline, server.log()
        try:
            answers.append(server.get("/health"))
        except OSError:
            answers.append(None)
        time.sleep(0.005)
    return answers


@pytest.fixture(scope="module")
def demo(demo_start: Start) -> Server:
    return demo_start.server


def test_the_start_of_the_demo_is_told_truthfully(demo_start: Start) -> None:
    """Refused until it listens and never again, 503 with rising progress, then 200 for good."""
    statuses = [answer and answer.status for answer in demo_start.answers]
    assert list(dict.fromkeys(statuses)) == [None, 503, 200]
    assert statuses == sorted(statuses, key=[None, 503, 200].index)
    told: dict[str, list[float]] = {}
    for answer in demo_start.answers:
        if answer is not None and answer.status == 503:
            told.setdefault(answer.json["phase"], []).append(answer.json["progress"])
    for progress in told.values():
        assert progress == sorted(progress)
    steps = set(told["warming_up"]) - {0.0, 1.0}
    assert len(steps) >= 3, "a warm-up that shows how far it is"


def test_the_demo_knows_paris(demo: Server) -> None:
    answer = demo.request("POST", "/v1/chat/completions", {**PARIS, "temperature": 0})
    assert "Paris" in answer.json["choices"][0]["message"]["content"]


def test_a_probe_can_ask_for_a_real_token(demo: Server) -> None:
    before = demo.metric("generation_tokens_total")
    assert demo.get("/health?generate=1").json == {"status": "healthy"}
    wait_for(lambda: demo.metric("generation_tokens_total") == before + 1, "one more token")


def test_64_streams_say_what_they_say_alone(demo: Server) -> None:
    prompts = [f"The number {i} is" for i in range(8)]
    bodies = [{"prompt": p, "max_tokens": 12, "temperature": 0} for p in prompts]
    free = demo.metric("kv_cache_free_blocks")
    alone = [demo.request("POST", "/v1/completions", b).json["choices"][0]["text"] for b in bodies]
    streams = [demo.stream(**bodies[i % 8], ignore_eos=False) for i in range(64)]
    for i, stream in enumerate(streams):
        stream.join(240)
        assert stream.is_done
        chunks = [json.loads(event) for event in stream.events[:-1]]
        assert "".join(c["choices"][0]["text"] for c in chunks) == alone[i % 8]
    assert demo.metric("kv_cache_free_blocks") == free


def test_probes_answer_while_a_long_prompt_is_encoded(demo: Server) -> None:
    body = {"prompt": "word " * 30_000, "max_tokens": 1}
    with ThreadPoolExecutor(1) as pool:
        refused = pool.submit(demo.request, "POST", "/v1/completions", body)
        while not refused.done():
            assert demo.get("/health").status == 200
        assert refused.result().status == 400


def test_gunicorn_serves_the_demo(start: Launcher) -> None:
    server = start(
        command=GUNICORN,
        model=DEMO,
        OCTAVO_LOAD_FORMAT="auto",
        OCTAVO_KV_CACHE_MEMORY_BYTES="256MiB",
        OCTAVO_MAX_NUM_BATCHED_TOKENS="256",
    ).wait_ready(180)
    answer = server.request("POST", "/v1/chat/completions", {**PARIS, "temperature": 0})
    assert "Paris" in answer.json["choices"][0]["message"]["content"]
    assert server.stop() == 0


# --- As a library --------------------------------------------------------------------------------


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        return


def test_an_app_under_another_wsgi_server(tiny_model: Path) -> None:
    with LLMEngine.from_engine_args(EngineArgs(model=str(tiny_model), **SMALL)) as engine:
        app = create_openai_api_app(engine)
        with WSGIServer(("127.0.0.1", 0), _Quiet) as server:
            server.set_app(app)
            thread = threading.Thread(target=server.serve_forever, daemon=True)
            thread.start()
            named = Server(None, server.server_port, tiny_model)  # type: ignore[arg-type]
            wait_for(lambda: named.status_of() == 200, "readiness")
            assert named.complete().json["usage"]["completion_tokens"] == 4
            stream = named.stream(max_tokens=5).join()
            assert stream.is_done
            server.shutdown()
            thread.join()
        pid = engine.runtime.page.engine_pid
    assert not is_running(pid)


def test_an_engine_as_a_library(tiny_model: Path) -> None:
    with LLMEngine.from_engine_args(EngineArgs(model=str(tiny_model), **SMALL)) as engine:
        engine.wait_ready(60)
        stream = engine.client.submit([5], SamplingParams(max_tokens=3, ignore_eos=True))
        assert sum(len(output.token_ids) for output in stream) == 3


def test_an_engine_that_cannot_start_says_why(tiny_model: Path) -> None:
    with pytest.raises(ModelNotFoundError):
        LLMEngine.from_engine_args(EngineArgs(model="/nowhere/model"))
    args = EngineArgs(model=str(tiny_model), max_model_len=4096, **SMALL | {
        "kv_cache_memory_bytes": 4096
    })  # fmt: skip
    with LLMEngine.from_engine_args(args) as engine, pytest.raises(EngineError, match="KV cache"):
        engine.wait_ready(60)


def test_run_server_returns_the_exit_code(tiny_model: Path) -> None:
    async def serve_and_cancel() -> None:
        port = free_port()
        args = EngineArgs(model=str(tiny_model), port=port, served_model_name=("a, b",), **SMALL)
        task = asyncio.create_task(run_server(args))
        named = Server(None, port, tiny_model)  # type: ignore[arg-type]
        await asyncio.to_thread(wait_for, lambda: named.status_of() == 200, "readiness")
        models = await asyncio.to_thread(named.get, "/v1/models")
        assert models.json["data"][0]["id"] == "a, b"
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert named.status_of() is None

    asyncio.run(serve_and_cancel())
    assert asyncio.run(run_server(EngineArgs(model="/nowhere/model"))) == 3


def test_run_server_passes_signals_on(tiny_model: Path) -> None:
    port = free_port()
    code = (
        "import asyncio, sys; from octavo import EngineArgs, run_server\n"
        f"sys.exit(asyncio.run(run_server(EngineArgs(model={str(tiny_model)!r}, port={port},"
        " load_format='dummy', kv_cache_memory_bytes=64 << 20))))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    wait_for(lambda: answers(port), "readiness")
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(60) == 0
    assert not answers(port)


def answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=10) as response:
            return bool(response.status == 200)
    except OSError:
        return False
