"""/openapi.json, /docs and the playground."""

from __future__ import annotations

import base64
import hashlib
import re
from typing import Any

import pytest
from app_under_test import Server

from octavo.server.openapi import operations_of

# Probes have documents of their own; pages are for people.
UNDOCUMENTED = {"/health", "/ready", "/readyz", "/ping", "/livez", "/startupz", "/docs", "/"}


@pytest.fixture
def document(server: Server) -> dict[str, Any]:
    return server.client.simulate_get("/openapi.json").json


def test_every_route_is_documented(server: Server, document: dict[str, Any]) -> None:
    for path, resource in server.routes.items():
        if path in UNDOCUMENTED:
            continue
        methods = {m for m in ("get", "post", "put", "delete") if hasattr(resource, f"on_{m}")}
        assert set(operations_of(resource)) == methods, path
        documented = document["paths"][re.sub(r":\w+}", "}", path)]
        assert methods == set(documented) - {"parameters"}


def test_references_lead_somewhere(document: dict[str, Any]) -> None:
    names = set(document["components"]["schemas"])
    seen = set()

    def walk(value: object) -> None:
        if isinstance(value, dict):
            if "$ref" in value:
                seen.add(value["$ref"].removeprefix("#/components/schemas/"))
            for each in value.values():
                walk(each)
        elif isinstance(value, list):
            for each in value:
                walk(each)

    walk(document)
    assert seen <= names
    assert {"ChatRequest", "CompletionRequest", "ErrorResponse", "MessageError"} <= seen


def test_caps_are_those_that_validate(document: dict[str, Any]) -> None:
    fields = document["components"]["schemas"]["ChatRequest"]["properties"]
    assert {"type": "integer", "minimum": 1, "maximum": 128} in fields["n"]["anyOf"]
    assert any(each.get("maxItems") == 128 for each in fields["tools"]["anyOf"])


def test_closed_routes_name_the_key(document: dict[str, Any]) -> None:
    assert document["paths"]["/v1/models"]["get"]["security"] == [{}, {"key": []}]
    assert "security" not in document["paths"]["/version"]["get"]


def test_prefix_of_a_proxy() -> None:
    document = Server(root_path="/llm").client.simulate_get("/openapi.json").json
    assert document["servers"] == [{"url": "/llm"}]


class TestPages:
    @pytest.mark.parametrize("path", ["/", "/docs"])
    def test_runs_only_its_own_script(self, server: Server, path: str) -> None:
        page = server.client.simulate_get(path)
        assert page.headers["Content-Type"] == "text/html; charset=utf-8"
        policy = page.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        (script,) = re.findall(r"<script>(.*?)</script>", page.text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"script-src 'sha256-{digest}'" in policy

    @pytest.mark.parametrize("path", ["/", "/docs"])
    def test_loads_nothing_from_elsewhere(self, server: Server, path: str) -> None:
        text = server.client.simulate_get(path).text
        assert not re.search(r"(https?:)?//[a-z0-9-]+\.[a-z]", text)
        assert not re.search(r"\son[a-z]+=|style=|<script[^>]|@import|innerHTML", text)
