"""Every cap of a request: at the cap, one over it, and absurd."""

from __future__ import annotations

import tracemalloc
from typing import TYPE_CHECKING

import msgspec
import pytest
from app_under_test import Server

from octavo.errors import InvalidRequestError, QueueFullError
from octavo.model.detokenizer import TextDensity
from octavo.server.schemas.chat import ChatRequest
from octavo.server.schemas.completions import CompletionRequest
from octavo.server.schemas.sizes import PromptRoom, check_sizes

if TYPE_CHECKING:
    from collections.abc import Callable

HUGE = 10**9


def accepted(server: Server, **fields: object) -> bool:
    result = server.complete(**{"max_tokens": 1, **fields})
    if result.status_code == 200:
        return True
    assert result.status_code == 400, result.text[:300]
    param = result.json["error"]["param"]
    assert param is not None
    assert any(param.startswith(name) for name in fields), param
    return False


@pytest.mark.parametrize(
    ("field", "good", "bad"),
    [
        ("n", [1, 128], [0, -1, 129, HUGE]),
        ("logprobs", [0, 20], [-1, 21, HUGE]),
        ("prompt_logprobs", [0, 20], [-1, 21, HUGE]),
        ("temperature", [0, 0.7, 2, 100], [-0.1, 100.1, HUGE]),
        ("top_p", [0.01, 1], [0, -1, 1.01, HUGE]),
        ("top_k", [-1, 0, 1, 2**31 - 1], [-2, 2**31]),
        ("min_p", [0, 1], [-0.1, 1.1, HUGE]),
        ("presence_penalty", [-2, 2], [-2.1, 2.1, HUGE]),
        ("frequency_penalty", [-2, 2], [-2.1, 2.1, HUGE]),
        ("repetition_penalty", [0.1, 100], [0, -1, 101, HUGE]),
        ("seed", [-(2**63), 2**63 - 1], [2**63, -(2**63) - 1, 10**30]),
        ("max_tokens", [1, 506], [0, -1, 507, HUGE, 2**31, 10**30]),
        ("min_tokens", [0, 1], [-1, 2, HUGE]),
        ("priority", [-(2**31), 2**31 - 1], [2**31, -(2**31) - 1, 10**30]),
        ("truncate_prompt_tokens", [-1, 1, HUGE], [-2, 0]),
        ("stop", [[], [""][:0], ["a"] * 16, "x" * 256, "é" * 128], [["a"] * 17, [""], "x" * 257]),
        ("stop_token_ids", [[], [0, 259], [5] * 1024], [[260], [-1], [5] * 1025, [HUGE], [10**30]]),
        ("allowed_token_ids", [[0, 259]], [[], [260], [-1], [HUGE]]),
        ("bad_words", [[], ["x"] * 128, ["x" * 256]], [["x"] * 129, [""], ["x" * 257]]),
        ("logit_bias", [{}, {"259": 1}, {"1": 1e9}], [{"260": 1}, {"-1": 1}, {"x": 1}]),
        ("cache_salt", ["x", "x" * 256], ["", "x" * 257]),
    ],
)
def test_field(server: Server, field: str, good: list, bad: list) -> None:
    for value in good:
        assert accepted(server, **{field: value}), value
    for value in bad:
        assert not accepted(server, **{field: value}), value


def test_number_of_stop_strings_and_their_bytes(server: Server) -> None:
    assert accepted(server, stop=["x" * 256] * 16)
    assert not accepted(server, stop=["é" * 129])
    assert not accepted(server, stop=["x"] * 100_000)


def test_logit_bias_entries(server: Server) -> None:
    """More than the vocabulary of the test model has, so both limits show."""
    entries = {str(i): 1.0 for i in range(1025)}
    error = server.refusal("/v1/completions", {"prompt": "x", "logit_bias": entries})
    assert error["param"] == "logit_bias"
    assert "1024" in error["message"]
    del entries["1024"]
    error = server.refusal("/v1/completions", {"prompt": "x", "logit_bias": entries})
    assert "not a token id" in error["message"]


def test_prompts_of_a_call(server: Server) -> None:
    assert accepted(server, prompt=["x"] * 1024)
    assert not accepted(server, prompt=["x"] * 1025)
    assert not accepted(server, prompt=[[1]] * 200_000)


@pytest.mark.parametrize(
    "prompt",
    [
        "", [], [[]], [""], ["a", [1]], ["a", 1], [1, [1]], [260], [-1], [[5, 260]], [10**30],
        None, 5, {"a": 1}, [None], [True], [1.5], "x" * 5000, [1] * 512, ["x", "x" * 600],
    ],
)  # fmt: skip
def test_bad_prompt(server: Server, prompt: object) -> None:
    body = {"prompt": prompt, "add_special_tokens": False, "max_tokens": 1}
    error = server.refusal("/v1/completions", body)
    assert error["param"].startswith("prompt")
    assert not server.engine.submissions


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("n", [True, "1", 1.5, [1]]),
        ("temperature", [True, "1", [], {}]),
        ("stream", [1, "true"]),
        ("echo", [1, "x"]),
        ("stop", [1, [1], {"a": 1}, True]),
        ("logprobs", [True, "1", 1.5]),
        ("logit_bias", [[], "x", {"1": "2"}, {"1": None}]),
        ("stream_options", [1, "x", {"include_usage": 1}]),
        ("model", [1, ["x"]]),
        ("allowed_token_ids", ["x", [1.5], [True], ["1"]]),
    ],
)
def test_wrong_types(server: Server, field: str, values: list) -> None:
    for value in values:
        error = server.refusal("/v1/completions", {"prompt": "x", field: value})
        assert error["param"].startswith(field), error
    assert not server.engine.submissions


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"null", b"[]", b"5", b'"x"', b"{}", b'{"prompt":"x"} y', b"\xef\xbb\xbf{}",
        b'{"prompt":"\xff"}', b'{"prompt":"\\ud800"}', b'{"prompt":"x","temperature":NaN}',
        b'{"prompt":"x","temperature":Infinity}', b'{"prompt":"x","temperature":1e999}',
        b'{"prompt":"x","unknown":NaN}', b'{"prompt":"x","a":' + b"[" * 100_000 + b"]" * 100_000,
        b'{"prompt":"x","a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", b"[" * 100_000,
        b'{"a":' * 100_000, b"{'prompt':'x'}", b'{"prompt":"x",}', b"\x00",
    ],
)  # fmt: skip
def test_bad_json(server: Server, body: bytes) -> None:
    server.refusal("/v1/completions", body)
    assert not server.engine.submissions


def test_nul_and_duplicates_are_plain_values(server: Server) -> None:
    body = b'{"prompt":"a","prompt":"b\\u0000","max_tokens":1,"add_special_tokens":false}'
    assert server.post("/v1/completions", body).status_code == 200
    assert server.engine.last.prompt == [98, 0]


def test_nesting_of_free_form_values(server: Server) -> None:
    for depth, reason in ((127, "values must be"), (128, "nested deeper"), (900, "nested deeper")):
        nested = "[" * depth + "]" * depth
        body = f'{{"messages":[{{"role":"user"}}],"chat_template_kwargs":{{"a":{nested}}}}}'
        assert reason in server.refusal("/v1/chat/completions", body)["message"]


def test_size_of_free_form_values(server: Server) -> None:
    for size, ok in ((64 * 1024 - 8, True), (64 * 1024 - 7, False), (10**6, False)):
        kwargs = {"a": "x" * size}
        body = {"messages": [{"role": "user"}], "chat_template_kwargs": kwargs}
        error = server.refusal("/v1/chat/completions", body)
        assert error["param"] == ("messages" if ok else "chat_template_kwargs")


class TestBody:
    def test_declared_length(self) -> None:
        server = Server(max_body_bytes=2000)
        frame = b'{"prompt":"x","max_tokens":1,"user":"%b"}'
        fill = 2000 - len(frame % b"")
        assert server.post("/v1/completions", frame % (b"x" * fill)).status_code == 200
        for size in (fill + 1, 100_000):
            result = server.post("/v1/completions", frame % (b"x" * size))
            assert result.status_code == 413
            assert result.json["error"]["code"] == "body_too_large"

    def test_lying_length(self) -> None:
        server = Server(max_body_bytes=2000)
        headers = {"Content-Length": str(HUGE)}
        assert server.post("/v1/completions", b"{}", headers=headers).status_code == 413

    @pytest.mark.parametrize(
        "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""]
    )
    def test_content_type(self, server: Server, kind: str) -> None:
        result = server.post("/v1/completions", {"prompt": "x"}, headers={"Content-Type": kind})
        assert result.status_code == 400
        assert "application/json" in result.json["error"]["message"]

    def test_charset_is_fine(self, server: Server) -> None:
        headers = {"Content-Type": "Application/JSON; charset=utf-8"}
        result = server.post("/v1/completions", {"prompt": "x", "max_tokens": 1}, headers=headers)
        assert result.status_code == 200

    def test_compressed(self, server: Server) -> None:
        headers = {"Content-Encoding": "gzip"}
        assert server.post("/v1/completions", b"\x1f\x8b", headers=headers).status_code == 400


def chat_body(**fields: object) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": "x"}], "max_tokens": 1, **fields}


def functions(count: int) -> list[dict[str, object]]:
    return [{"type": "function", "function": {"name": f"f{i}"}} for i in range(count)]


@pytest.mark.parametrize(
    ("path", "body", "param", "accepted_at", "refused_at"),
    [
        ("/v1/chat/completions", lambda k: chat_body(tools=functions(k), tool_choice="none"),
         "tools", [0, 1, 128], [129, 5000]),
        ("/v1/chat/completions", lambda k: chat_body(max_completion_tokens=k),
         "max_completion_tokens", [1], [0, -1, 2**31, 10**30]),
        ("/v1/chat/completions", lambda k: chat_body(logprobs=True, top_logprobs=k),
         "top_logprobs", [0, 20], [-1, 21, HUGE]),
        ("/v1/chat/completions", lambda k: chat_body(stop=["x"] * k), "stop",
         [0, 16], [17, 100_000]),
        ("/v1/chat/completions", lambda k: chat_body(n=k), "n", [1, 128], [0, -1, 129, HUGE]),
        ("/v1/chat/completions", lambda k: chat_body(reasoning_effort="x" * k),
         "reasoning_effort", [0, 32], [33, 10**6]),
        ("/v1/messages", lambda k: chat_body(stop_sequences=["x"] * k), "stop_sequences",
         [0, 16], [17, 100_000]),
        ("/v1/messages", lambda k: chat_body(max_tokens=k), "max_tokens", [1], [0, -1, 2**31]),
        ("/v1/responses", lambda k: {"input": "x", "max_output_tokens": k}, "max_output_tokens",
         [1], [0, -1, 2**31]),
        ("/v1/responses", lambda k: {"input": "x", "metadata": {str(i): "v" for i in range(k)}},
         "metadata", [0, 16], [17, 10_000]),
        ("/v1/responses", lambda k: {"input": "x", "top_logprobs": k}, "top_logprobs",
         [0, 20], [-1, 21, HUGE]),
    ],
)  # fmt: skip
def test_other_routes(
    server: Server,
    path: str,
    body: Callable[[int], dict],
    param: str,
    accepted_at: list[int],
    refused_at: list[int],
) -> None:
    for value in accepted_at:
        result = server.post(path, body(value))
        assert result.status_code == 200, (value, result.text[:300])
    for value in refused_at:
        result = server.post(path, body(value))
        assert result.status_code == 400, (value, result.text[:300])
        assert param in result.json["error"]["message"]
    assert all(s.sampling.n <= 128 for s in server.engine.submissions)


def test_a_refusal_is_cheap(server: Server) -> None:
    """Of memory: the largest body that is read, and little beside it."""
    bodies = [
        {"prompt": [[1]] * 100_000},
        {"prompt": "x", "stop": ["x" * 100] * 50_000},
        {"prompt": "x", "logit_bias": {str(i): 0 for i in range(100_000)}},
        {"prompt": "x", "bad_words": ["y" * 50] * 50_000},
        {"prompt": "x", "n": 10**9},
    ]
    for body in bodies:
        data = msgspec.json.encode(body)
        tracemalloc.start()
        server.refusal("/v1/completions", data)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 64 << 20, body.keys()


class TestLargeBodies:
    """Those that are looked at before they are taken apart."""

    def test_what_is_good_passes(self, server: Server) -> None:
        fill = "y" * (300 << 10)  # an unknown field
        bodies: list[dict[str, object]] = [
            {"prompt": "x"},
            {"prompt": ["x"] * 1024},
            {"prompt": ['"', "\\", '\\"', "["] * 256},
            {"prompt": [[1]] * 1024},
            {"prompt": "x", "stop": ["\U0001f600" * 64] * 16},
            {"prompt": "x", "bad_words": ["\U0001f600" * 64] * 128},
            {"prompt": "word " * 100_000, "truncate_prompt_tokens": 5},
            {"prompt": [5] * 200_000, "truncate_prompt_tokens": 5},
        ]
        for body in bodies:
            answer = server.complete(**body, max_tokens=1, user=fill)
            assert answer.status_code == 200, answer.text[:300]

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("stop", ["x"] * 100_000),
            ("stop", "x" * 300_000),
            ("bad_words", ["word"] * 100_000),
            ("logit_bias", {str(i): 0 for i in range(100_000)}),
            ("allowed_token_ids", [5] * 3_000_000),
            ("stop_token_ids", [5] * 1_000_000),
            ("model", "x" * 300_000),
            ("prompt", ["x"] * 100_000),
            ("prompt", ["\\"] * 100_000),
            ("prompt", [[1]] * 100_000),
            ("prompt", "x" * 300_000),
            ("prompt", '"' * 300_000),
            ("prompt", [1] * 200_000),
            ("prompt", [-1] * 200_000),
            ("prompt", [[1] * 200_000]),
            ("prompt", [[1], [1] * 200_000]),
        ],
    )
    def test_what_is_not_is_refused(self, server: Server, field: str, value: object) -> None:
        error = server.refusal("/v1/completions", {"prompt": "x", field: value})
        assert error["param"] == field
        assert not server.engine.submissions

    @pytest.mark.parametrize(
        "body", [b"{" * 300_000, b'{"a":' + b"[" * 300_000, b'{"prompt":"' * 30_000]
    )
    def test_what_is_no_json_is_told_as_always(self, server: Server, body: bytes) -> None:
        message = server.refusal("/v1/completions", body)["message"]
        assert "valid JSON" in message or "too deeply" in message


class TestPromptRoom:
    """Large prompts by their bytes: what may fit is never refused, what cannot is."""

    ROOM = 300_000

    def is_refused(self, prompt: object, density: TextDensity, **fields: object) -> bool:
        body = msgspec.json.encode({"prompt": prompt, **fields})
        try:
            check_sizes(CompletionRequest, body, lambda: PromptRoom(self.ROOM, density))
        except InvalidRequestError as error:
            return (error.code, error.param) == ("context_length_exceeded", "prompt")
        return False

    @pytest.mark.parametrize(
        ("unit", "size"), [("abc", 3), ("é€x", 6), ("\U0001f600", 4), ("x", 1), ("x\n", 2)]
    )
    def test_texts(self, unit: str, size: int) -> None:
        fits = unit * self.ROOM
        assert not self.is_refused(fits, TextDensity(size, b""))
        assert self.is_refused(fits * 3, TextDensity(size, b""))
        assert not self.is_refused(fits * 3, TextDensity(0, b""))
        for truncated in (1, -1):
            fields = {"truncate_prompt_tokens": truncated}
            assert not self.is_refused(fits * 3, TextDensity(size, b""), **fields)
        assert self.is_refused(fits * 3, TextDensity(size, b""), truncate_prompt_tokens=None)

    def test_bytes_that_have_no_token_do_not_count(self) -> None:
        text = "\U0001f600" * self.ROOM + "\x04" * self.ROOM + "\\u\\" * 10
        for count in (1, 2):
            density = TextDensity(count, "\U0001f600".encode()[count:])
            assert not self.is_refused(text, density)
            assert self.is_refused(text + "x" * (count * self.ROOM), density)

    def test_token_ids(self) -> None:
        unknown = TextDensity(0, b"")
        for prompt in ([0] * self.ROOM, [[0] * self.ROOM] * 2, [[0]] * 1024):
            assert not self.is_refused(prompt, unknown)
        for prompt in ([0] * (self.ROOM + 1), [[0] * (self.ROOM + 1)] * 2):
            assert self.is_refused(prompt, unknown)
            assert not self.is_refused(prompt, unknown, truncate_prompt_tokens=-1)


class TestManyTools:
    def check(self, tools: object) -> bool:
        body = msgspec.json.encode(chat_body(tools=tools))
        try:
            check_sizes(ChatRequest, body)
        except InvalidRequestError as error:
            return error.param != "tools"
        return True

    def test_far_too_many_are_refused_before_they_are_built(self) -> None:
        assert not self.check(functions(100_000))
        assert not self.check([{"a": "],}"}] * 50_000)
        assert not self.check([1] * 500_000)

    def test_large_ones_pass(self) -> None:
        schema = {"enum": ["[{,}]" * 50] * 40, "é": {"type": ["a", 1, None, -1.5e3]}}
        tools = functions(128)
        for each in tools:
            each["function"]["parameters"] = schema  # type: ignore[index]
        assert self.check(tools)
        assert self.check([{"a": "é" * 3000}] * 128)
        assert self.check("x" * 300_000)  # of another kind: whoever builds it says so
        assert self.check({"x": "y" * 300_000})
        assert self.check([[[]] * 200_000])


def test_a_full_queue_says_when_to_come_back(server: Server) -> None:
    server.engine.fail_at, server.engine.failure = 0, QueueFullError("Too many wait.")
    result = server.complete()
    assert result.status_code == 429
    assert int(result.headers["Retry-After"]) >= 1
