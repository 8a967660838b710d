"""Adapters on a running server: loaded and unloaded under load, and what a start refuses."""

from __future__ import annotations

import http.client
import json
import os
import signal
from typing import TYPE_CHECKING, Any

import pytest

from e2e.serving import WAIT_S, Answer, Launcher, Server, Stream, wait_for
from model.adapter_files import random_adapter, write_adapter
from octavo import _core
from octavo.model.config import to_core
from octavo.model.hf_config import hf_model_info

if TYPE_CHECKING:
    from pathlib import Path

KEY = "secret"
PROMPTS = [[5 + i, 9, 7 * i + 3] for i in range(6)]


@pytest.fixture(scope="module")
def root(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three adapters that change every projection of the tiny model."""
    root = tmp_path_factory.mktemp("adapters")
    targets = _core.lora_targets(to_core(hf_model_info(tiny_model)))
    for seed, name in enumerate(("poet", "painter", "third")):
        write_adapter(root / name, random_adapter(targets, 8, seed), 8, lora_alpha=16)
    return root


def admin(server: Server, verb: str, **body: Any) -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=WAIT_S)
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
    connection.request("POST", f"/v1/{verb}_lora_adapter", json.dumps(body), headers)
    response = connection.getresponse()
    answer = Answer(response.status, response.headers, response.read().decode())
    connection.close()
    return answer


def tokens_of(stream: Stream) -> tuple[int, ...]:
    """Of a stream that ended well."""
    assert stream.is_done, stream.events[-2:]
    assert stream.fault is None
    chunks = [json.loads(event) for event in stream.events[:-1]]
    return tuple(
        id_ for chunk in chunks for choice in chunk["choices"] for id_ in choice["token_ids"]
    )


def stream(server: Server, prompt: list[int], max_tokens: int, **fields: Any) -> Stream:
    return server.stream(
        prompt=prompt, max_tokens=max_tokens, temperature=0, return_token_ids=True, **fields
    )


def tokens(
    server: Server, prompt: list[int], max_tokens: int = 40, **fields: Any
) -> tuple[int, ...]:
    return tokens_of(stream(server, prompt, max_tokens, **fields).join())


def model_ids(server: Server) -> list[str]:
    return [card["id"] for card in server.get("/v1/models").json["data"]]


@pytest.fixture
def server(start: Launcher, root: Path) -> Server:
    return start(
        *("--served-model-name", "base", "--lora-modules", f"poet={root / 'poet'}"),
        *("--enable-admin", "--admin-api-key", KEY, "--lora-root", str(root)),
        *("--max-loras", "2", "--max-lora-rank", "8", "--api-server-count", "2"),
    ).wait_ready()


def test_loading_under_load_changes_no_stream(server: Server) -> None:
    names = ["base", "poet"] * 3
    expected = [
        tokens(server, prompt, 150, model=name) for prompt, name in zip(PROMPTS, names, strict=True)
    ]
    assert len(set(expected)) > 3
    streams = [
        stream(server, prompt, 150, model=name) for prompt, name in zip(PROMPTS, names, strict=True)
    ]
    for each in streams:
        each.wait_started()
    for _ in range(3):
        answer = admin(server, "load", lora_name="painter", lora_path="painter")
        assert (answer.status, answer.json["parent"]) == (200, "base"), answer.text
        assert server.complete(model="painter").status == 200
        assert admin(server, "unload", lora_name="painter").status == 200
    assert [tokens_of(each.join()) for each in streams] == expected


def test_unloading_leaves_running_streams_alone(server: Server) -> None:
    expected = tokens(server, PROMPTS[0], 200, model="poet")
    assert expected != tokens(server, PROMPTS[0], 200)
    running = stream(server, PROMPTS[0], 200, model="poet").wait_started()
    assert admin(server, "unload", lora_name="poet").status == 200
    for _ in range(4):  # in either worker
        assert server.complete(model="poet").status == 404
        assert model_ids(server) == ["base"]
    assert tokens_of(running.join()) == expected


def test_every_worker_serves_what_one_has_loaded(server: Server) -> None:
    assert admin(server, "load", lora_name="painter", lora_path="painter").status == 200
    answers = {tokens(server, PROMPTS[0], model="painter") for _ in range(6)}
    assert len(answers) == 1
    assert answers.isdisjoint(
        {tokens(server, PROMPTS[0]), tokens(server, PROMPTS[0], model="poet")}
    )
    assert model_ids(server) == ["base", "poet", "painter"]
    refused = admin(server, "load", lora_name="third", lora_path="third")
    assert (refused.status, "--max-loras" in refused.text) == (400, True)
    outside = admin(server, "load", lora_name="third", lora_path="/etc")
    assert (outside.status, outside.json["error"]["param"]) == (400, "lora_path")


def test_one_loaded_anew_finds_nothing_of_the_one_before(server: Server) -> None:
    prompt = list(range(5, 69))
    first = admin(server, "load", lora_name="x", lora_path="painter")
    assert first.status == 200
    painted = tokens(server, prompt, model="x")
    assert admin(server, "load", lora_name="x", lora_path="third").status == 400
    assert admin(server, "unload", lora_name="x").status == 200
    assert admin(server, "load", lora_name="x", lora_path="third").status == 200
    answer = server.complete(prompt=prompt, model="x", max_tokens=40, return_token_ids=True)
    assert answer.json["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert tuple(answer.json["choices"][0]["token_ids"]) != painted


def test_a_new_engine_has_the_configured_ones(server: Server) -> None:
    expected = tokens(server, PROMPTS[0], model="poet")
    assert admin(server, "load", lora_name="painter", lora_path="painter").status == 200
    engine = server.engine_pid()
    os.kill(engine, signal.SIGKILL)
    wait_for(lambda: server.engine_pid() != engine, "another engine")
    server.wait_ready()
    assert tokens(server, PROMPTS[0], model="poet") == expected
    assert model_ids(server) == ["base", "poet"]
    assert server.complete(model="painter").status == 404


@pytest.mark.parametrize(
    ("changes", "code", "cause"),
    [
        (None, 3, "no such directory"),
        ({"use_dora": True}, 4, "DoRA"),
        ({"rank": 16}, 2, "rank 16 is above --max-lora-rank 8"),
        ({"width": 8}, 3, "is it of another model"),
        ({"target": "lm_head"}, 4, "output head"),
    ],
)
def test_a_start_refuses(
    start: Launcher,
    tiny_model: Path,
    tmp_path: Path,
    changes: dict[str, Any] | None,
    code: int,
    cause: str,
) -> None:
    path = tmp_path / "adapter"
    if changes is not None:
        changes = dict(changes)
        name, cols, rows = _core.lora_targets(to_core(hf_model_info(tiny_model)))[0]
        rank = changes.pop("rank", 8)
        target = (changes.pop("target", name), cols + changes.pop("width", 0), rows)
        write_adapter(path, random_adapter([target], rank), rank, **changes)
    server = start("--lora-modules", f"poet={path}", "--max-lora-rank", "8")
    assert server.wait() == code
    assert cause in server.last_line()
