"""What surrounds every route: keys, request ids, origins, methods, unknown paths, readiness."""

from __future__ import annotations

import re

import pytest
from app_under_test import Server

from octavo.server.app import routes

OPEN = {"/health", "/ready", "/readyz", "/ping", "/livez", "/startupz", "/version", "/metrics",
        "/load", "/openapi.json", "/docs", "/"}  # fmt: skip
KEYS = ("key-one", "schlüssel-zwei")
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")


def paths(server: Server) -> list[str]:
    given = {"{model_id:path}": "org/fake", "{response_id}": "resp_1"}
    return [re.sub(r"\{.*?\}", lambda match: given[match[0]], path) for path in server.routes]


class TestKeys:
    @pytest.fixture
    def locked(self) -> Server:
        return Server(api_key=KEYS)

    def test_every_route_and_method(self, locked: Server) -> None:
        """Walks the app's own routes, so that a new one cannot be forgotten."""
        for path in paths(locked):
            for method in METHODS:
                status = locked.client.simulate_request(method, path).status_code
                if path in OPEN:
                    assert status in (200, 405, 503), (path, method, status)
                else:
                    assert status == 401, (path, method, status)

    @pytest.mark.parametrize(
        "headers",
        [
            {"Authorization": "Bearer wrong"},
            {"Authorization": "Bearer "},
            {"Authorization": "Bearer key-one "[:-2]},
            {"Authorization": "Basic key-one"},
            {"Authorization": "key-one"},
            {"X-Api-Key": "key-on"},
            {"X-Api-Key": "KEY-ONE"},
            {"Authorization": "Bearer key-one key-one"},
            {"Host": "localhost"},
            {"X-Forwarded-For": "127.0.0.1"},
            {"Authorization": "Bearer \u00ff"},
        ],
    )
    def test_bad_keys(self, locked: Server, headers: dict[str, str]) -> None:
        for path in set(paths(locked)) - OPEN:
            assert locked.client.simulate_get(path, headers=headers).status_code == 401

    @pytest.mark.parametrize(
        "headers",
        [
            {"Authorization": "Bearer key-one"},
            {"authorization": "bearer key-one"},
            {"X-Api-Key": "key-one"},
            {"Authorization": "Bearer " + KEYS[1].encode().decode("latin-1")},
        ],
    )
    def test_good_keys(self, locked: Server, headers: dict[str, str]) -> None:
        assert locked.client.simulate_get("/v1/models", headers=headers).status_code == 200

    @pytest.mark.parametrize(
        "path",
        ["//v1/models", "/v1//models", "/v1/./models", "/%2e/v1/models", "/v1/models/",
         "/V1/models", "/v1/Models", "/health/../v1/models", "/health/%2e%2e/v1/models",
         "/v1/models;x", "/v1%2fmodels%2f", "/metrics/../v1/models"],
    )  # fmt: skip
    def test_odd_spellings_open_nothing(self, locked: Server, path: str) -> None:
        for method in METHODS:
            result = locked.client.simulate_request(method, path)
            assert result.status_code in (401, 404), (method, path)

    def test_error_shape(self, locked: Server) -> None:
        result = locked.client.simulate_get("/v1/models")
        assert result.headers["WWW-Authenticate"] == "Bearer"
        assert result.json["error"]["code"] == "invalid_api_key"
        assert "key-one" not in result.text

    def test_no_keys_lets_everybody_in(self, server: Server) -> None:
        assert server.client.simulate_get("/v1/models").status_code == 200


class TestAdministration:
    ROUTES = (
        ("POST", "/reset_prefix_cache"),
        ("POST", "/self_check"),
        ("GET", "/server_info"),
        ("POST", "/sleep"),
        ("GET", "/is_sleeping"),
        ("POST", "/wake_up"),
    )

    def test_absent_by_default(self, server: Server) -> None:
        for method, path in self.ROUTES:
            assert server.client.simulate_request(method, path).status_code == 404

    def test_needs_its_own_key(self) -> None:
        server = Server(enable_admin=True, admin_api_key=("root",), api_key=("user",))
        for method, path in self.ROUTES:
            for key, status in (("root", 200), ("user", 401), ("", 401)):
                headers = {"Authorization": f"Bearer {key}"}
                result = server.client.simulate_request(method, path, headers=headers)
                assert result.status_code == status
        headers = {"Authorization": "Bearer root"}
        assert server.client.simulate_get("/v1/models", headers=headers).status_code == 401

    def test_without_a_key_nobody_gets_in(self) -> None:
        server = Server(enable_admin=True)
        for method, path in self.ROUTES:
            assert server.client.simulate_request(method, path).status_code == 401


def test_request_id(server: Server) -> None:
    echoed = server.client.simulate_get("/version", headers={"X-Request-Id": "abc-1"})
    assert echoed.headers["X-Request-Id"] == "abc-1"
    made = [server.client.simulate_get("/version").headers["X-Request-Id"] for _ in range(2)]
    assert made[0] != made[1]
    for odd in ("x" * 129, "a b", "é", ""):
        result = server.client.simulate_get("/nothing", headers={"X-Request-Id": odd})
        assert result.headers["X-Request-Id"] not in ("", odd)


def test_unknown_path(server: Server) -> None:
    for method in ("GET", "POST", "OPTIONS"):
        result = server.client.simulate_request(method, "/v2/nothing")
        assert result.status_code == 404
        assert result.json["error"]["type"] == "not_found_error"


def test_wrong_method(server: Server) -> None:
    result = server.client.simulate_get("/v1/completions")
    assert result.status_code == 405
    assert result.headers["Allow"] == "POST, OPTIONS"
    assert result.json["error"]["type"] == "invalid_request_error"
    assert server.client.simulate_delete("/v1/models").status_code == 405


def test_head(server: Server) -> None:
    for path in ("/health", "/version", "/metrics", "/v1/models", "/v1/models/org/fake", "/load"):
        result = server.client.simulate_head(path)
        assert result.status_code == 200
        assert result.content == b""


def test_options_lists_methods(server: Server) -> None:
    result = server.client.simulate_options("/v1/models")
    assert result.status_code == 200
    assert result.headers["Allow"] == "GET, HEAD"


class TestOrigins:
    PREFLIGHT = {  # noqa: RUF012
        "Origin": "https://app.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization, content-type",
    }

    def test_preflight_needs_no_key(self) -> None:
        server = Server(allowed_origins=("https://app.example",), api_key=("k",))
        result = server.client.simulate_options("/v1/completions", headers=self.PREFLIGHT)
        assert result.status_code == 204
        assert result.headers["Access-Control-Allow-Origin"] == "https://app.example"
        assert "POST" in result.headers["Access-Control-Allow-Methods"]
        assert result.headers["Access-Control-Allow-Headers"] == "authorization, content-type"

    def test_other_origins(self) -> None:
        server = Server(allowed_origins=("https://app.example",), api_key=("k",))
        headers = {**self.PREFLIGHT, "Origin": "https://evil.example"}
        result = server.client.simulate_options("/v1/completions", headers=headers)
        assert result.status_code == 401
        assert "Access-Control-Allow-Origin" not in result.headers

    def test_answers_and_errors_name_the_origin(self) -> None:
        server = Server(allowed_origins=("*",))
        for path in ("/version", "/nothing"):
            result = server.client.simulate_get(path, headers={"Origin": "https://a.example"})
            assert result.headers["Access-Control-Allow-Origin"] == "https://a.example"
            assert "X-Request-Id" in result.headers["Access-Control-Expose-Headers"]

    def test_off_by_default(self, server: Server) -> None:
        result = server.client.simulate_get("/version", headers={"Origin": "https://a.example"})
        assert "Access-Control-Allow-Origin" not in result.headers


class TestLoading:
    @pytest.fixture
    def loading(self) -> Server:
        server = Server()
        server.engine.ready = False
        return server

    def test_generation_waits(self, loading: Server) -> None:
        for path in ("/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"):
            result = loading.post(path, {"prompt": "x"})
            assert result.status_code == 503
            assert result.headers["Retry-After"] == "1"
            assert "loading weights" in result.json["error"]["message"]

    def test_models_version_and_metrics_answer(self, loading: Server) -> None:
        models = loading.client.simulate_get("/v1/models").json
        assert models["data"][0]["max_model_len"] is None
        assert loading.client.simulate_get("/version").status_code == 200
        text = loading.client.simulate_get("/metrics").text
        assert 'octavo:ready{model_name="org/fake"} 0' in text
        assert "num_requests_running" not in text
        assert loading.client.simulate_get("/load").status_code == 503

    def test_draining(self, server: Server) -> None:
        server.engine.draining = True
        result = server.complete()
        assert result.status_code == 503
        assert "shutting down" in result.json["error"]["message"]


class TestModels:
    def test_cards(self) -> None:
        server = Server(served_model_name=("org/one", "two"))
        body = server.client.simulate_get("/v1/models").json
        assert body["object"] == "list"
        assert [card["id"] for card in body["data"]] == ["org/one", "two"]
        assert body["data"][0]["max_model_len"] == 512
        assert body["data"][0]["object"] == "model"

    def test_one_card(self) -> None:
        server = Server(served_model_name=("org/one",))
        assert server.client.simulate_get("/v1/models/org/one").json["id"] == "org/one"
        assert server.client.simulate_get("/v1/models/org%2Fone").json["id"] == "org/one"
        result = server.client.simulate_get("/v1/models/other")
        assert result.status_code == 404
        assert result.json["error"]["code"] == "model_not_found"

    def test_any_served_name_is_good(self) -> None:
        server = Server(served_model_name=("one", "two"))
        assert server.complete(model="two").json["model"] == "two"
        assert server.complete().json["model"] == "one"
        for path in ("/v1/completions", "/tokenize"):
            error = server.refusal(path, {"prompt": "x", "model": "three"}, status=404)
            assert error["param"] == "model"


def test_a_fault_says_nothing_about_itself(
    server: Server, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "/home/secret/path.py"

    def fail(*_: object, **__: object) -> None:
        raise KeyError(secret)

    monkeypatch.setattr(server.engine, "submit", fail)
    for stream in (False, True):
        result = server.complete(stream=stream)
        assert result.status_code == 500
        assert result.json["error"]["code"] == "internal_error"
        assert secret not in result.text
    assert secret in caplog.text


def test_every_route_is_listed() -> None:
    server = Server()
    assert set(routes(server.context, server.readiness)) == set(server.routes)
    assert "/v1/chat/completions" in server.routes
