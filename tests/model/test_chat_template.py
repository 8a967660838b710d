"""Chat templates against transformers' rendering, and against what would harm a server."""

from __future__ import annotations

import time
from typing import Any

import pytest

from model.templates import TEMPLATES
from octavo.errors import InvalidRequestError, UnsupportedModelError
from octavo.model.chat_template import MAX_RENDER_SECONDS, ChatTemplate

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": 'Says "how" <it> is & will be',
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]
CALL = {
    "id": "call12345",
    "type": "function",
    "function": {"name": "weather", "arguments": {"city": "Zürich"}},
}
CHATS: dict[str, list[dict[str, Any]]] = {
    "one": [{"role": "user", "content": "Hi <|im_end|> & <b>"}],
    "system": [
        {"role": "system", "content": "Be brief. "},
        {"role": "user", "content": " What is 2+2?"},
        {"role": "assistant", "content": "4\n"},
        {"role": "user", "content": "And 3+3? 日本"},
    ],
    "tools": [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": "sunny", "tool_call_id": "call12345", "name": "weather"},
        {"role": "user", "content": "Thanks"},
    ],
}


def reference(source: str, messages: list[dict[str, Any]], **options: Any) -> str:
    utils = pytest.importorskip("transformers.utils.chat_template_utils")
    rendered, _ = utils.render_jinja_template([messages], chat_template=source, **options)
    return str(rendered[0])


@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("prompt", [True, False])
@pytest.mark.parametrize("tools", [None, TOOLS])
def test_renders_as_transformers(name: str, chat: str, prompt: bool, tools: Any) -> None:
    source = TEMPLATES[name]
    try:
        expected = reference(
            source, CHATS[chat], tools=tools, add_generation_prompt=prompt, **SPECIAL
        )
    except Exception as error:
        if type(error).__module__.split(".")[0] != "jinja2":
            raise
        with pytest.raises(InvalidRequestError):
            ChatTemplate(source, SPECIAL).render(CHATS[chat], tools=tools)
        return
    template = ChatTemplate(source, SPECIAL)
    assert template.render(CHATS[chat], tools=tools, add_generation_prompt=prompt) == expected


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("text", ["Sure, the answer", "Sure, the answer is ", "\n1. "])
def test_continues_as_transformers(name: str, text: str) -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": text}]
    expected = reference(TEMPLATES[name], messages, continue_final_message=True, **SPECIAL)
    template = ChatTemplate(TEMPLATES[name], SPECIAL)
    options = {"add_generation_prompt": False, "continue_final_message": True}
    assert template.render(messages, **options) == expected


def test_continues_exactly_where_the_text_also_stands_later() -> None:
    template = ChatTemplate(TEMPLATES["chatml"])
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "m_e"}]
    found = template.render(messages, add_generation_prompt=False, continue_final_message=True)
    assert found.endswith("<|im_start|>assistant\nm_e")


@pytest.mark.parametrize(
    ("messages", "options", "cause"),
    [
        ([], {}, "needs a message"),
        (CHATS["one"], {"continue_final_message": True}, "exclude each other"),
        ([{"role": "user", "content": " "}], {"continue_final_message": True,
         "add_generation_prompt": False}, "no text to continue"),
        (CHATS["one"], {"template_kwargs": {"messages": []}}, "messages cannot be set"),
        (CHATS["one"], {"template_kwargs": {"octavo_tick": 1}}, "octavo_tick cannot be set"),
    ],
)  # fmt: skip
def test_refuses(messages: list[Any], options: dict[str, Any], cause: str) -> None:
    with pytest.raises(InvalidRequestError, match=cause):
        ChatTemplate(TEMPLATES["chatml"]).render(messages, **options)


def test_a_dropped_final_message_cannot_be_continued() -> None:
    template = ChatTemplate("{{ messages[0].content }}")
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    with pytest.raises(InvalidRequestError, match="drops the final message"):
        template.render(messages, add_generation_prompt=False, continue_final_message=True)


def test_kwargs_reach_the_template() -> None:
    template = ChatTemplate("{{ 'think' if enable_thinking else 'act' }}{{ bos_token }}", SPECIAL)
    assert template.render(CHATS["one"], template_kwargs={"enable_thinking": True}) == "think<s>"
    assert template.render(CHATS["one"]) == "act<s>"


def test_tool_templates_are_for_chats_with_tools() -> None:
    template = ChatTemplate("plain", tool_source="tools")
    assert template.render(CHATS["one"]) == "plain"
    assert template.render(CHATS["one"], tools=[]) == "plain"
    assert template.render(CHATS["one"], tools=TOOLS) == "tools"


def test_messages_are_prepared_as_templates_expect_them() -> None:
    template = ChatTemplate("{% for m in messages %}{{ m | tojson }}{% endfor %}")
    call = {"function": {"name": "f", "arguments": '{"b": 1, "a": "é"}'}}
    messages = [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
    ]
    assert template.render(messages) == (
        '{"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", '
        '"arguments": {"b": 1, "a": "é"}}}]}{"role": "user", "content": "a\\nb"}'
    )
    assert messages[0]["content"] is None
    broken = {"function": {"name": "f", "arguments": "{no json"}}
    assert "{no json" in template.render([{"role": "assistant", "tool_calls": [broken]}])


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{% for m in messages %}{{ m['content'] }}{% endfor %}", False),
        ("{% for p in messages[0].content %}{{ p.text }}{% endfor %}", True),
        ("{% for m in messages %}{% for p in m['content'] %}{{ p }}{% endfor %}{% endfor %}", True),
        ("{% set c = messages[0]['content'] %}{% for p in c %}{{ p.text }}{% endfor %}", True),
        ("{% set c = messages[0]['role'] %}{% for p in c %}{{ p }}{% endfor %}", False),
    ],
)
def test_parts_stay_parts_where_the_template_takes_them(source: str, expected: bool) -> None:
    assert ChatTemplate(source).wants_parts is expected


def test_parts_can_be_continued() -> None:
    source = "{% for m in messages %}{% for p in m.content %}{{ p.text }}|{% endfor %}{% endfor %}"
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}, {"type": "image"}]
    found = ChatTemplate(source).render(
        [{"role": "user", "content": parts}],
        add_generation_prompt=False,
        continue_final_message=True,
    )
    assert found == "a|b"


def test_the_date_is_today_s() -> None:
    before = time.strftime("%Y-%m-%d")
    found = ChatTemplate("{{ strftime_now('%Y-%m-%d') }}").render(CHATS["one"])
    assert found in {before, time.strftime("%Y-%m-%d")}


@pytest.mark.parametrize("source", ["{% if %}", "{{ 'a", "{% unknown %}", "{{ a|nofilter }}"])
def test_names_the_invalid_template(source: str) -> None:
    with pytest.raises(UnsupportedModelError, match="chat template is not valid"):
        ChatTemplate(source)


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('no system') }}",
        "{{ messages[5].content + 1 }}",
        "{{ messages[0].content + 1 }}",
        "{{ 1 / 0 }}",
        "{{ [].pop() }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    ],
)
def test_what_fails_is_the_request_s_fault(source: str) -> None:
    with pytest.raises(InvalidRequestError, match="The chat template"):
        ChatTemplate(source).render(CHATS["one"])


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(a=1) }}",
        "{{ raise_exception.__globals__['re'] }}",
        "{{ '{0.__class__}'.format(1) }}",
        "{{ self.__init__.__globals__ }}",
    ],
)
def test_the_sandbox_holds(source: str) -> None:
    with pytest.raises(InvalidRequestError, match=r"refuses this chat|fails on this chat"):
        ChatTemplate(source).render(CHATS["one"])


FOREVER = [
    "{% for a in range(99999) %}{% for b in range(99999) %}{% set x = 1 %}{% endfor %}{% endfor %}",
    "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "{% for a in range(99999) recursive %}{{ loop(range(99999)) if loop.depth < 9 }}{% endfor %}",
]


@pytest.mark.parametrize("source", FOREVER)
def test_a_deadline_ends_what_would_not_end(source: str) -> None:
    begin = time.monotonic()
    with pytest.raises(InvalidRequestError, match=r"takes too long|out of memory"):
        ChatTemplate(source).render(CHATS["one"])
    assert time.monotonic() - begin < MAX_RENDER_SECONDS + 2


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'x' * 1000000000 }}",
        "{{ 1000000000 * [1] }}",
        "{{ 9 ** 9 ** 9 }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ '%*d' % (1000000000, 1) }}",
        "{{ messages | tojson(indent=1000000000) }}",
        "{{ 'a' | indent(1000000000, true) }}",
        "{{ 'a'.ljust(1000000000) }}",
        "{{ 'a'.zfill(1000000000) }}",
        "{{ '{:1000000000}'.format(1) }}",
        "{% for i in range(90000) %}xxxxxxxxxxxxxxxxxx{% endfor %}",
        "{% for i in range(1000000000) %}{% endfor %}",
    ],
)
def test_output_is_bounded(source: str) -> None:
    begin = time.monotonic()
    with pytest.raises(InvalidRequestError):
        ChatTemplate(source).render(CHATS["one"])
    assert time.monotonic() - begin < 1


@pytest.mark.parametrize("name", ["center", "batch", "slice", "wordwrap", "format"])
def test_padding_filters_are_absent(name: str) -> None:
    with pytest.raises(UnsupportedModelError, match=name):
        ChatTemplate(f"{{{{ 'a' | {name}(1000000000) }}}}")


def test_long_chats_fit() -> None:
    messages = [{"role": "user", "content": "é" * 1000}] * 1000
    assert len(ChatTemplate(TEMPLATES["chatml"]).render(messages)) > 1_000_000
