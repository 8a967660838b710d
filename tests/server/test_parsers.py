"""Reasoning and tool calls in the text of models, however the text is cut into pieces."""

from __future__ import annotations

import itertools
import json
import re
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.errors import ConfigError
from octavo.server.parsers.answer import AnswerParser, Parts
from octavo.server.parsers.json_scanner import JsonScanner
from octavo.server.parsers.reasoning import ReasoningParser
from octavo.server.parsers.registry import (
    TOOL_PARSERS,
    find_reasoning_parser,
    find_tool_parser,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

SCHEMAS = {
    "weather": {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer"},
            "zip": {"type": "string"},
        },
    }
}
ARGUMENTS = '{"city": "Paris {\\"}\\\\", "days": [1, {"a": null}]}'
PARSED = {"city": 'Paris {"}\\', "days": [1, {"a": None}]}


def pieces(text: str, cuts: Sequence[int]) -> list[str]:
    edges = [0, *sorted({cut % (len(text) + 1) for cut in cuts}), len(text)]
    return [text[a:b] for a, b in itertools.pairwise(edges) if a < b]


def run(parser: Any, parts_in: Sequence[str]) -> tuple[str, list[tuple[str, str]], Parts]:
    """Content, calls as (name, arguments), and all parts; the deltas' order is checked."""
    total = Parts()
    for piece in parts_in:
        total.extend(parser.feed(piece))
    total.extend(parser.finish())
    names: list[str] = []
    arguments: list[str] = []
    for delta in total.calls:
        if delta.name is not None:
            assert delta.index == len(names)
            assert delta.id
            names.append(delta.name)
            arguments.append("")
        assert delta.index == len(names) - 1
        arguments[delta.index] += delta.arguments
    return total.content, list(zip(names, arguments, strict=True)), total


def calls_of(kind: str, text: str, cuts: Sequence[int] = ()) -> tuple[str, list[tuple[str, Any]]]:
    content, calls, _ = run(TOOL_PARSERS[kind](SCHEMAS), pieces(text, cuts))
    return content, [(name, json.loads(arguments)) for name, arguments in calls]


ONE = f'{{"name": "weather", "arguments": {ARGUMENTS}}}'
TWO = f'{{"parameters": {ARGUMENTS}, "name": "weather"}}'
CALLED = [("weather", PARSED)]
XML = "<function=weather>\n<parameter=city>\nParis\n</parameter>\n"
XML += "<parameter=days>\n3\n</parameter>\n<parameter=zip>\n007\n</parameter>\n</function>"
XML_CALLED = [("weather", {"city": "Paris", "days": 3, "zip": "007"})]

GOOD = [
    ("hermes", f"<tool_call>\n{ONE}\n</tool_call>", "", CALLED),
    ("hermes", f"Let me see.<tool_call>{ONE}</tool_call>", "Let me see.", CALLED),
    ("hermes", f"<tool_call>{ONE}</tool_call>\n<tool_call>{TWO}</tool_call>", "", CALLED * 2),
    ("hermes", f"<tool_call>{ONE}<tool_call>{TWO}", "", CALLED * 2),
    ("hermes", f"<tool_call>{ONE}</tool_call> Done.", " Done.", CALLED),
    ("hermes", '<tool_call>{"name": "now"}</tool_call>', "", [("now", {})]),
    ("hermes", '<tool_call>{"name":"now","arguments":null}</tool_call>', "", [("now", None)]),
    ("hermes", '<tool_call>{"name":"a","arguments":"{\\"b\\":1}"}', "", [("a", {"b": 1})]),
    ("hermes", '<tool_call>{"id":[{"name":"x"}],"name":"a","arguments":{}}', "", [("a", {})]),
    ("qwen", f"<tool_call>\n{XML}\n</tool_call>", "", XML_CALLED),
    ("qwen", f"Hm <tool_call>{XML}</tool_call>\n<tool_call>{XML}</tool_call>", "Hm ",
     XML_CALLED * 2),
    ("qwen", "<tool_call><function=now></function></tool_call>", "", [("now", {})]),
    ("qwen", f"<tool_call>\n{ONE}\n</tool_call>", "", CALLED),
    ("llama3_json", ONE, "", CALLED),
    ("llama3_json", f"\n <|python_tag|>{TWO}", "", CALLED),
    ("llama3_json", f"{ONE}; {TWO}", "", CALLED * 2),
    ("mistral", f"[TOOL_CALLS][{ONE}, {TWO}]", "", CALLED * 2),
    ("mistral", f"Hm [TOOL_CALLS] [{ONE}]", "Hm ", CALLED),
    ("mistral", f"[TOOL_CALLS]weather{ARGUMENTS}", "", CALLED),
    ("mistral", f"[TOOL_CALLS]weather[ARGS]{ARGUMENTS}[TOOL_CALLS]now[ARGS]{{}}", "",
     [*CALLED, ("now", {})]),
    ("mistral", f"[TOOL_CALLS]weather[CALL_ID]abcdefghi[ARGS]{ARGUMENTS}", "", CALLED),
]  # fmt: skip

# Text that only looks like a call is given out as it is.
PLAIN = [
    ("hermes", "a <tool_cal> b < c <tool_calls"),
    ("hermes", "<tool_call>not json</tool_call>"),
    ("qwen", "<tool_call><u<tool_call><function></tool_call>"),
    ("qwen", "<tool_call><function=></function></tool_call>"),
    ("mistral", "[TOOL_CALLS]{[TOOL_CALLS]s"),
    ("hermes", '<tool_call>{"nam": 1}'),
    ("hermes", "<tool_call>"),
    ("hermes", '<tool_call>{"arguments": {"a": 1}'),
    ("qwen", "<tool_call><function"),
    ("qwen", "<tool_call><fun>x"),
    ("llama3_json", 'Use {"a": 1} here'),
    ("llama3_json", '{"a": 1}'),
    ("llama3_json", '{"a": 1} and {"name": "x"}'),
    ("llama3_json", "{oops"),
    ("llama3_json", "  "),
    ("mistral", "[TOOL_CALL] x"),
    ("mistral", "[TOOL_CALLS] nothing more"),
]


@pytest.mark.parametrize(("kind", "text", "content", "calls"), GOOD)
def test_calls(kind: str, text: str, content: str, calls: list) -> None:
    assert calls_of(kind, text) == (content, calls)
    assert calls_of(kind, text, range(len(text))) == (content, calls)


@settings(max_examples=200)
@given(case=st.sampled_from(GOOD), cuts=st.lists(st.integers(0, 500), max_size=8))
def test_calls_do_not_depend_on_pieces(case: tuple, cuts: list[int]) -> None:
    kind, text, content, calls = case
    assert calls_of(kind, text, cuts) == (content, calls)


@pytest.mark.parametrize(("kind", "text"), PLAIN)
def test_plain_text_is_kept(kind: str, text: str) -> None:
    assert calls_of(kind, text) == (text, [])
    assert calls_of(kind, text, range(len(text))) == (text, [])


@settings(max_examples=300)
@given(
    kind=st.sampled_from(sorted(TOOL_PARSERS)),
    words=st.lists(
        st.sampled_from(
            ["<tool_call>", "</tool_call>", "<function=", "</function>", "<parameter=", ">", "{",
             "}", '"', '"name"', ":", '"a"', ",", '"arguments"', "[", "]", "[TOOL_CALLS]",
             "[ARGS]", "<|python_tag|>", "\\", "</parameter>", " ", "x", "1", ";"]
        ),
        max_size=25,
    ),
    cuts=st.lists(st.integers(0, 300), max_size=6),
)  # fmt: skip
def test_any_text_parses_the_same_in_any_pieces(
    kind: str, words: list[str], cuts: list[int]
) -> None:
    text = "".join(words)
    whole = run(TOOL_PARSERS[kind](SCHEMAS), [text] if text else [])
    cut = run(TOOL_PARSERS[kind](SCHEMAS), pieces(text, cuts))
    single = run(TOOL_PARSERS[kind](SCHEMAS), list(text))
    assert whole[:2] == cut[:2] == single[:2]


def test_arguments_come_as_they_are_written() -> None:
    parser = TOOL_PARSERS["hermes"](SCHEMAS)
    begun = parser.feed('<tool_call>{"name": "weather", "arguments": {"ci')
    assert begun.calls[0].name == "weather"
    assert begun.calls[1].arguments == '{"ci'
    assert parser.feed('ty": "Par').calls[0].arguments == 'ty": "Par'
    assert parser.feed('is"}}</tool_call>').calls[0].arguments == 'is"}'


def test_mistral_ids_have_nine_characters() -> None:
    _, _, parts = run(TOOL_PARSERS["mistral"]({}), [f"[TOOL_CALLS][{ONE}]"])
    assert re.fullmatch("[0-9a-z]{9}", parts.calls[0].id or "")


def test_cost_is_linear() -> None:
    """Many brackets, quotes and tags: scanning that is not linear would run into the time limit."""
    for kind in TOOL_PARSERS:
        for text in ('{"name": "a", "arguments": {"x": "' + '\\"' * 60_000, "<tool_call>" * 20_000,
                     "[TOOL_CALLS]" * 20_000, "[" * 60_000, "{" * 60_000):  # fmt: skip
            run(AnswerParser(None, TOOL_PARSERS[kind]({})), [text])


class TestReasoning:
    @pytest.mark.parametrize(
        ("text", "is_inside", "reasoning", "content"),
        [
            ("<think>\nhm\n</think>\n\nHi", False, "hm", "Hi"),
            ("\n<think>hm</think>Hi", False, "hm", "Hi"),
            ("hm\n\nhm\n</think>\nHi\n", True, "hm\n\nhm", "Hi\n"),
            ("<think>\n\n</think>\n\nHi", False, "", "Hi"),
            ("Hi <think>x</think>", False, "", "Hi <think>x</think>"),
            ("<think>never ends\n", False, "never ends", ""),
            ("<thin", False, "", "<thin"),
            ("Hi", False, "", "Hi"),
            ("a </thin b</think>c</think>d", True, "a </thin b", "c</think>d"),
            ("only </thi", True, "only </thi", ""),
            ("", False, "", ""),
        ],
    )
    def test_split(self, text: str, is_inside: bool, reasoning: str, content: str) -> None:
        for cuts in ((), range(len(text))):
            parser = AnswerParser(ReasoningParser(is_inside=is_inside), None)
            got, _, parts = run(parser, pieces(text, cuts))
            assert (parts.reasoning, got) == (reasoning, content)

    @given(
        words=st.lists(st.sampled_from(["<think>", "</think>", "\n", "x", "<", "/"]), max_size=12),
        cuts=st.lists(st.integers(0, 100), max_size=6),
        is_inside=st.booleans(),
    )
    def test_any_pieces(self, words: list[str], cuts: list[int], is_inside: bool) -> None:
        text = "".join(words)
        results = []
        for parts_in in (pieces(text, ()), pieces(text, cuts), list(text)):
            parser = AnswerParser(ReasoningParser(is_inside=is_inside), None)
            content, _, parts = run(parser, parts_in)
            results.append((content, parts.reasoning))
        assert results[0] == results[1] == results[2]

    def test_before_tool_calls(self) -> None:
        parser = AnswerParser(ReasoningParser(is_inside=False), TOOL_PARSERS["hermes"](SCHEMAS))
        text = f"<think>\nI need it.\n</think>\n\n<tool_call>\n{ONE}\n</tool_call>"
        content, calls, parts = run(parser, list(text))
        assert (parts.reasoning, content) == ("I need it.", "")
        assert [name for name, _ in calls] == ["weather"]


@given(value=st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists))
def test_scanner_finds_the_end_of_any_json(value: Any) -> None:
    text = json.dumps([value]) + ', "more"'
    for step in (1, 3, len(text)):
        scanner, used = JsonScanner(), 0
        while not scanner.is_done:
            used += scanner.feed(text[used : used + step])
        assert json.loads(text[:used]) == [value]


class TestRegistry:
    def test_by_vocabulary(self) -> None:
        def knows(*tokens: str) -> Any:
            return lambda token: 5 if token in tokens else None

        assert find_tool_parser("auto", knows("<tool_call>")) == "hermes"
        assert find_tool_parser("auto", knows("[TOOL_CALLS]")) == "mistral"
        assert find_tool_parser("auto", knows("<|python_tag|>")) == "llama3_json"
        assert find_tool_parser("auto", knows()) is None
        assert find_reasoning_parser("auto", knows("</think>")) == "think"
        assert find_reasoning_parser("auto", knows()) is None

    def test_by_name(self) -> None:
        for name in TOOL_PARSERS:
            assert find_tool_parser(name, lambda _: None) == name
        assert find_tool_parser("none", lambda _: 1) is None
        assert find_reasoning_parser("qwen3", lambda _: None) == "qwen3"
        with pytest.raises(ConfigError, match="llama3_json"):
            find_tool_parser("llama9", lambda _: None)
        with pytest.raises(ConfigError, match="deepseek_r1"):
            find_reasoning_parser("x", lambda _: None)
