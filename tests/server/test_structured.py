"""What requests say about the form of their answers: the grammar that the engine is given."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from app_under_test import ByteTokenizer, Server, events
from llguidance import LLMatcher, LLTokenizer
from scripted_engine import EOS, VOCAB_SIZE, say

SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}},
    {"type": "function", "function": {"name": "time_of_day", "description": "Now."}},
]
GOOD = '{"city": "Zürich", "days": 3}'


class Vocabulary:
    """The vocabulary of ByteTokenizer."""

    is_tokenizer_wrapper = True
    eos_token_id = EOS
    bos_token_id = None
    special_token_ids = (256, 257, 258, 259)
    tokens = (*(bytes([i]) for i in range(256)), b"<s>", b"</s>", b"<|im|>", b"<|x|>")

    def __call__(self, text: bytes | str) -> list[int]:
        return list(text if isinstance(text, bytes) else text.encode())


TOKENIZER = LLTokenizer(Vocabulary(), n_vocab=VOCAB_SIZE, eos_token=[EOS])


def accepts(grammar: str | None, text: str) -> bool:
    """Whether an output of this text, encoded with special tokens, is one the grammar allows."""
    assert grammar is not None
    matcher = LLMatcher(TOKENIZER, grammar, log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    ids = ByteTokenizer().encode(text, add_special_tokens=False)
    return all(map(matcher.consume_token, ids)) and matcher.is_accepting()


def grammar_of(server: Server, **fields: Any) -> str | None:
    result = server.chat(**fields)
    assert result.status_code == 200, result.text
    return server.engine.last.sampling.grammar


@pytest.mark.parametrize(
    ("fields", "good", "bad"),
    [
        ({"response_format": {"type": "json_object"}}, ['{"a": [1, null]}', "{}"], ["[1]", "x"]),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}},
            [GOOD, '{"city":"","days":-1}', '{\n  "city": "a",\n  "days": 0\n}'],
            ["{}", '{"city": 1, "days": 3}', GOOD + "x", '{"days": 3, "city": "a", "x": 1}'],
        ),
        ({"structured_outputs": {"json": SCHEMA}}, [GOOD], ["{}"]),
        ({"structured_outputs": {"json": json.dumps(SCHEMA)}}, [GOOD], ["{}"]),
        ({"structured_outputs": {"json": True}}, ["5", "[]"], ["x"]),
        ({"structured_outputs": {"json_object": True}}, ["{}"], ["5"]),
        ({"structured_outputs": {"regex": "[0-9]{3}-é/?"}}, ["123-é", "123-é/"], ["12-é", "123-"]),
        ({"structured_outputs": {"choice": ["a b", 'x"\n', "中"]}}, ["a b", 'x"\n', "中"], ["a"]),
        ({"structured_outputs": {"grammar": 'start: "a"+ B\nB: /[bc]/'}}, ["aab", "ac"], ["a"]),
        ({"structured_outputs": {"grammar": 'root ::= "a"+ [bc]'}}, ["aab", "ac"], ["a"]),
    ],
)
def test_grammar(server: Server, fields: dict, good: list[str], bad: list[str]) -> None:
    grammar = grammar_of(server, **fields)
    assert all(accepts(grammar, text) for text in good)
    assert not any(accepts(grammar, text) for text in bad)
    assert server.complete(**fields).status_code == 200
    same = server.engine.last.sampling.grammar
    assert all(accepts(same, text) for text in good)


@pytest.mark.parametrize(
    "fields",
    [
        {}, {"response_format": {"type": "text"}}, {"response_format": None},
        {"structured_outputs": None}, {"structured_outputs": {}},
        {"structured_outputs": {"json": None, "json_object": False}},
        {"tools": TOOLS}, {"tools": TOOLS, "tool_choice": "auto"},
    ],
)  # fmt: skip
def test_free_answers(server: Server, fields: dict) -> None:
    assert grammar_of(server, **fields) is None


def test_white_space_is_bounded(server: Server) -> None:
    grammar = grammar_of(server, structured_outputs={"json": SCHEMA})
    assert accepts(grammar, "{" + " " * 16 + GOOD[1:])
    assert not accepts(grammar, "{" + "\n" * 17 + GOOD[1:])


CALL = '<tool_call>\n{{"name": "{}", "arguments": {}}}\n</tool_call>'
WEATHER, TIME = CALL.format("weather", GOOD), CALL.format("time_of_day", "{}")


@pytest.mark.parametrize(
    ("choice", "good", "bad"),
    [
        ("required", [WEATHER, TIME, f"{WEATHER}\n{TIME}"], ["", "Hello", WEATHER + "x"]),
        (
            {"type": "function", "function": {"name": "weather"}},
            [WEATHER],
            [TIME, f"{WEATHER}\n{WEATHER}", CALL.format("weather", "{}")],
        ),
    ],
)
@pytest.mark.parametrize("parser", ["hermes", "auto", "none"])
def test_forced_call(choice: Any, good: list[str], bad: list[str], parser: str) -> None:
    """A model without a format of its own is held to the common one."""
    server = Server(tool_call_parser=parser)
    server.engine.script = say(good[0])
    result = server.chat(tools=TOOLS, tool_choice=choice)
    grammar = server.engine.last.sampling.grammar
    assert all(accepts(grammar, text) for text in good)
    assert not any(accepts(grammar, text) for text in bad)
    (call,) = result.json["choices"][0]["message"]["tool_calls"]
    assert call["function"] == {"name": "weather", "arguments": GOOD}
    assert result.json["choices"][0]["finish_reason"] == "tool_calls"


def test_one_call_at_a_time() -> None:
    server = Server(tool_call_parser="hermes")
    server.engine.script = say(WEATHER)
    fields = {"tools": TOOLS, "tool_choice": "required"}
    grammar = grammar_of(server, parallel_tool_calls=False, **fields)
    assert accepts(grammar, WEATHER)
    assert not accepts(grammar, f"{WEATHER}\n{TIME}")


LLAMA = '{{"name": "{}", "parameters": {}}}'
MISTRAL = '[TOOL_CALLS][{{"name": "{}", "arguments": {}}}]'


@pytest.mark.parametrize(("parser", "form"), [("llama3_json", LLAMA), ("mistral", MISTRAL)])
def test_formats(parser: str, form: str) -> None:
    server = Server(tool_call_parser=parser)
    server.engine.script = say(form.format("weather", GOOD))
    result = server.chat(tools=TOOLS, tool_choice="required")
    (call,) = result.json["choices"][0]["message"]["tool_calls"]
    assert call["function"] == {"name": "weather", "arguments": GOOD}
    grammar = server.engine.last.sampling.grammar
    assert accepts(grammar, form.format("time_of_day", "{}"))
    assert not accepts(grammar, form.format("weather", "{}"))
    assert not accepts(grammar, GOOD)


def test_a_name_is_written_as_json() -> None:
    server = Server(tool_call_parser="hermes")
    tools = [{"type": "function", "function": {"name": 'a"b\\é'}}]
    server.engine.script = say(CALL.format('a\\"b\\\\é', "{}"))
    (call,) = server.chat(tools=tools, tool_choice="required").json["choices"][0]["message"][
        "tool_calls"
    ]
    assert call["function"]["name"] == 'a"b\\é'
    assert accepts(server.engine.last.sampling.grammar, CALL.format('a\\"b\\\\é', "{}"))


def test_a_call_or_the_form() -> None:
    """Beside tools that the model is free to call, a form holds for what is no call."""
    server = Server(tool_call_parser="hermes")
    form = {"type": "json_schema", "json_schema": {"schema": SCHEMA}}
    grammar = grammar_of(server, tools=TOOLS, response_format=form)
    assert accepts(grammar, GOOD)
    assert accepts(grammar, WEATHER)
    assert not accepts(grammar, "Hello")


@pytest.mark.parametrize("is_inside", [False, True])
def test_reasoning_is_free(is_inside: bool) -> None:
    server = Server(reasoning_parser="think")
    server.template.ending = "<think>\n" if is_inside else ""
    opening = "" if is_inside else "<think>"
    server.engine.script = say(f"{opening}I </ think.</think>\n\n{GOOD}")
    result = server.chat(structured_outputs={"json": SCHEMA})
    grammar = server.engine.last.sampling.grammar
    for text in (f"{opening}I </ think. {GOOD}</think>\n\n{GOOD}", f"{opening}</think>{GOOD}"):
        assert accepts(grammar, text)
    assert accepts(grammar, GOOD) is not is_inside
    assert not accepts(grammar, f"{opening}I think.</think>so: {GOOD}")
    assert result.json["choices"][0]["message"]["content"] == GOOD
    assert result.json["choices"][0]["message"]["reasoning_content"] == "I </ think."


def test_responses_and_messages(server: Server) -> None:
    form = {"type": "json_schema", "name": "trip", "schema": SCHEMA, "strict": True}
    body = {"input": "x", "text": {"format": form}}
    assert server.post("/v1/responses", body).status_code == 200
    assert accepts(server.engine.last.sampling.grammar, GOOD)
    server.engine.script = say(WEATHER)
    tool = {"name": "weather", "input_schema": SCHEMA}
    for choice in ({"type": "any"}, {"type": "tool", "name": "weather"}):
        body = {
            "messages": [{"role": "user", "content": "x"}], "max_tokens": 200,
            "tools": [tool], "tool_choice": choice,
        }  # fmt: skip
        message = server.post("/v1/messages", body).json
        assert message["stop_reason"] == "tool_use"
        assert message["content"][0]["input"] == json.loads(GOOD)
        assert accepts(server.engine.last.sampling.grammar, WEATHER)
    body = {
        "input": "x", "tool_choice": "required",
        "tools": [{"type": "function", "name": "weather", "parameters": SCHEMA}],
    }  # fmt: skip
    assert server.post("/v1/responses", body).json["output"][0]["name"] == "weather"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}},
         "response_format.json_schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": [1]}}},
         "response_format.json_schema.schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": 5}}}},
         "response_format.json_schema.schema"),
        ({"structured_outputs": {"json": {"not": {}}}}, "structured_outputs.json"),
        ({"structured_outputs": {"json": "{"}}, "structured_outputs.json"),
        ({"structured_outputs": {"json": 5}}, "structured_outputs.json"),
        ({"structured_outputs": {"regex": "("}}, "structured_outputs.regex"),
        ({"structured_outputs": {"regex": ""}}, "structured_outputs.regex"),
        ({"structured_outputs": {"grammar": "start: x"}}, "structured_outputs.grammar"),
        ({"structured_outputs": {"grammar": "root ::= (("}}, "structured_outputs.grammar"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice"),
        ({"structured_outputs": {"choice": [1]}}, "structured_outputs.choice[0]"),
        ({"structured_outputs": {"choice": ["a"], "regex": "a"}}, "structured_outputs"),
        ({"structured_outputs": {"choice": ["a"]}, "response_format": {"type": "json_object"}},
         "structured_outputs"),
        ({"structured_outputs": ["a"]}, "structured_outputs"),
        ({"structured_outputs": {"choice": ["a"]}, "min_tokens": 2}, "min_tokens"),
        ({"structured_outputs": {"choice": ["a"]}, "ignore_eos": True}, "ignore_eos"),
        ({"structured_outputs": {"choice": ["a"]}, "bad_words": ["a"]}, "bad_words"),
        ({"structured_outputs": {"choice": ["a"]}, "allowed_token_ids": [5]},
         "allowed_token_ids"),
        ({"tools": [{"type": "function", "function": {"name": "f", "strict": True,
          "parameters": {"not": {}}}}], "tool_choice": "required"}, "tool_choice"),
    ],
)  # fmt: skip
def test_refused(server: Server, fields: dict, param: str) -> None:
    body = {"messages": [{"role": "user", "content": "hello"}], **fields}
    assert server.refusal("/v1/chat/completions", body)["param"] == param
    assert not server.engine.submissions


def test_tools_are_lenient_unless_strict(server: Server) -> None:
    function = {"name": "f", "parameters": {"type": "object", "dependentRequired": {"a": ["b"]}}}
    tools = [{"type": "function", "function": function}]
    assert server.chat(tools=tools, tool_choice="required").status_code == 200


@pytest.mark.parametrize("size", [64 * 1024 - 2, 64 * 1024 + 1, 10**7])
def test_sizes(server: Server, size: int) -> None:
    is_small = size <= 64 * 1024
    for fields in (
        {"json": {"const": "x" * (size - len('{"const":""}'))}},
        {"regex": "x" * size},
        {"choice": ["x" * size]},
        {"grammar": 'start: "a" //' + "x" * (size - 13)},
    ):
        begin = time.monotonic()
        result = server.chat(structured_outputs=fields)
        assert result.status_code == (200 if is_small else 400), (list(fields), result.text[:300])
        assert time.monotonic() - begin < 5


EVIL = [
    {"regex": "(a+)+" * 1000 + "b"},
    {"regex": "((a{1,1000}){1,1000}){1,1000}"},
    {"regex": "x{1,1000000000}"},
    {"regex": "(" * 20_000 + ")" * 20_000},
    {"regex": "|".join(f"value{i}" for i in range(6000))},
    {"grammar": "start: " + "(" * 20_000},
    {"grammar": "root ::= " + "(" * 20_000},
    {"grammar": "start: r0\n" + "".join(f"r{i}: r{i + 1} r{i + 1}\n" for i in range(1500))
     + 'r1500: "a"'},
    {"json": {"enum": [f"v{i}" for i in range(6000)]}},
    {"json": {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}},
              "$ref": "#/$defs/a"}},
    {"json": {"type": "array", "minItems": 10**9, "items": {"type": "array", "minItems": 10**9}}},
    {"json": {"type": "string", "pattern": "(.*a){50}.{1000}"}},
    {"json": {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(2000)}}},
    {"json": {"type": "integer", "multipleOf": 7919 * 104_729}},
    {"choice": ["x" * 15] * 4096},
]  # fmt: skip


@pytest.mark.parametrize("fields", EVIL, ids=lambda fields: f"{fields}"[:40])
def test_evil(server: Server, fields: dict) -> None:
    """Accepted or refused, but soon."""
    begin = time.monotonic()
    assert server.chat(structured_outputs=fields).status_code in (200, 400)
    assert time.monotonic() - begin < 5


def test_depth(server: Server) -> None:
    for depth, status in ((100, 200), (126, 400), (10_000, 400)):
        schema = '{"items":' * depth + "{}" + "}" * depth
        messages = '[{"role":"user","content":"x"}]'
        body = f'{{"messages":{messages},"structured_outputs":{{"json":{schema}}}}}'
        assert server.post("/v1/chat/completions", body).status_code == status, depth


def test_streams_are_held_to_it_too(server: Server) -> None:
    server.engine.script = say(GOOD)
    chunks = events(server.chat(structured_outputs={"json": SCHEMA}, stream=True))
    text = "".join(c["choices"][0]["delta"].get("content", "") for c in chunks)
    assert text == GOOD
    assert accepts(server.engine.last.sampling.grammar, GOOD)
