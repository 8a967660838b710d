"""Adapters (LoRA) as models of their own: named by requests, listed, loaded and unloaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from app_under_test import Server

from octavo.engine.client import AdapterCard

if TYPE_CHECKING:
    from collections.abc import Callable

ADMIN = {"Authorization": "Bearer boss"}
MESSAGES = [{"role": "user", "content": "hello"}]

# Each route that generates or counts, with a body that names a model.
ROUTES: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "hello"},
    "/v1/chat/completions": {"messages": MESSAGES},
    "/v1/responses": {"input": "hello"},
    "/v1/messages": {"messages": MESSAGES, "max_tokens": 4},
    "/v1/embeddings": {"input": "hello"},
}
COUNTS: dict[str, dict[str, Any]] = {
    "/tokenize": {"prompt": "hello"},
    "/detokenize": {"tokens": [65]},
    "/v1/messages/count_tokens": {"messages": MESSAGES},
}


@pytest.fixture
def server() -> Server:
    server = Server(enable_lora=True, enable_admin=True, admin_api_key=("boss",))
    server.engine.loaded = {"poet": AdapterCard("poet", "poet-v2", "org/base")}
    return server


def post(server: Server, path: str, **body: Any) -> Any:
    return server.post(path, body, headers=ADMIN)


@pytest.mark.parametrize("path", ROUTES)
def test_a_request_names_an_adapter(server: Server, path: str) -> None:
    for name, adapter in (("poet", "poet"), ("org/fake", ""), (None, "")):
        result = server.post(path, ROUTES[path] | ({"model": name} if name else {}))
        assert result.status_code == 200, result.text
        assert server.engine.last.adapter == adapter
        assert result.json["model"] == (name or "org/fake")


@pytest.mark.parametrize("path", COUNTS)
def test_what_only_counts_takes_the_name_too(server: Server, path: str) -> None:
    assert server.post(path, COUNTS[path] | {"model": "poet"}).status_code == 200


@pytest.mark.parametrize("path", [*ROUTES, *COUNTS])
def test_an_unknown_name_is_404(server: Server, path: str) -> None:
    body = (ROUTES | COUNTS)[path]
    result = server.post(path, body | {"model": "painter"})
    assert result.status_code == 404
    assert "painter" in result.text


def test_one_that_another_worker_loaded_is_found(server: Server) -> None:
    server.engine.elsewhere = {"painter": AdapterCard("painter", "painter")}
    assert server.complete(model="painter").status_code == 200
    assert server.engine.last.adapter == "painter"


def test_models_lists_base_and_adapters(server: Server) -> None:
    base, poet = server.client.simulate_get("/v1/models").json["data"]
    assert (base["id"], base["root"], base["parent"]) == ("org/fake", "org/fake", None)
    assert (poet["id"], poet["root"], poet["parent"]) == ("poet", "poet-v2", "org/base")
    assert poet["max_model_len"] == base["max_model_len"]
    assert server.client.simulate_get("/v1/models/poet").json == poet
    assert server.client.simulate_get("/v1/models/painter").status_code == 404


def test_the_configured_ones_are_listed_while_the_model_loads() -> None:
    server = Server(lora_modules=("poet=/adapters/poet-v2",))
    server.engine.ready = False
    _, poet = server.client.simulate_get("/v1/models").json["data"]
    assert (poet["id"], poet["root"], poet["parent"]) == ("poet", "poet-v2", "org/fake")
    assert server.client.simulate_get("/v1/models/poet").status_code == 200
    assert server.client.simulate_get("/v1/models/painter").status_code == 404


def test_load_and_unload(server: Server) -> None:
    result = post(server, "/v1/load_lora_adapter", lora_name="painter", lora_path="a/painter-v1")
    assert result.status_code == 200
    assert (result.json["id"], result.json["root"]) == ("painter", "painter-v1")
    assert server.complete(model="painter").status_code == 200
    result = post(server, "/v1/load_lora_adapter", lora_name="painter", lora_path="b")
    assert (result.status_code, result.json["error"]["param"]) == (400, "lora_name")
    again = {"lora_name": "painter", "lora_path": "b", "load_inplace": True}
    assert post(server, "/v1/load_lora_adapter", **again).json["root"] == "b"
    assert post(server, "/v1/unload_lora_adapter", lora_name="painter").status_code == 200
    assert server.complete(model="painter").status_code == 404
    assert post(server, "/v1/unload_lora_adapter", lora_name="painter").status_code == 404


@pytest.mark.parametrize("path", ["/v1/load_lora_adapter", "/v1/unload_lora_adapter"])
def test_the_routes_are_the_administrators(server: Server, path: str) -> None:
    body = {"lora_name": "poet", "lora_path": "poet"}
    assert server.post(path, body).status_code == 401
    assert Server(enable_lora=True).post(path, body).status_code == 404
    assert post(server, path).json["error"]["param"] == "lora_name"


def test_without_adapters_the_engine_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server()
    refuse: Callable[..., None] = lambda _timeout: pytest.fail("asked")  # noqa: E731
    monkeypatch.setattr(server.engine, "refresh_adapters", refuse)
    assert server.complete(model="poet").status_code == 404
