"""The part of Go templates, with Helm's functions, that our chart uses; anything else is an error.

Source: pkg.go.dev/text/template and the chart template guide of helm.sh.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import yaml

ACTION = re.compile(r"\{\{(-)?\s*(.*?)\s*(-)?\}\}", re.DOTALL)
WORD = re.compile(r'"(?:[^"\\]|\\.)*"|\(|\)|\||[^\s()|]+')


@dataclass
class Node:
    """A piece of text, an action, or a block with its branches."""

    kind: str
    text: str = ""
    body: list[Node] = field(default_factory=list)
    otherwise: list[Node] = field(default_factory=list)


def tokens(source: str) -> list[tuple[str, str]]:
    """Texts and actions, with the white space that `{{-` and `-}}` eat removed."""
    found, position, trim = [], 0, False
    for match in ACTION.finditer(source):
        text = source[position : match.start()]
        text = text.lstrip() if trim else text
        found.append(("text", text.rstrip() if match[1] else text))
        found.append(("action", match[2]))
        position, trim = match.end(), bool(match[3])
    rest = source[position:]
    return [*found, ("text", rest.lstrip() if trim else rest)]


def parse(source: str) -> list[Node]:
    """The tree of a template."""
    stack: list[tuple[Node, list[Node]]] = [(Node("root"), root := [])]
    for kind, text in tokens(source):
        word = text.split(" ")[0] if kind == "action" else ""
        if word in ("if", "with", "range", "define"):
            node = Node(word, text.removeprefix(word).strip())
            stack[-1][1].append(node)
            stack.append((node, node.body))
        elif word == "else":
            assert text == "else", f"unknown: {text}"
            stack[-1] = (stack[-1][0], stack[-1][0].otherwise)
        elif word == "end":
            stack.pop()
        elif text:
            stack[-1][1].append(Node(kind, text))
    assert len(stack) == 1, f"{stack[-1][0].kind} without end"
    return root


class Renderer:
    """Renders templates that share their definitions."""

    def __init__(self) -> None:
        self.defined: dict[str, list[Node]] = {}

    def render(self, source: str, dot: dict[str, Any]) -> str:
        return self._nodes(parse(source), dot, {})

    def _nodes(self, nodes: list[Node], dot: Any, names: dict[str, Any]) -> str:
        return "".join(self._node(node, dot, names) for node in nodes)

    def _node(self, node: Node, dot: Any, names: dict[str, Any]) -> str:
        if node.kind == "text":
            return node.text
        if node.kind == "define":
            self.defined[node.text.strip('"')] = node.body
            return ""
        if node.kind == "range":
            return self._range(node, dot, names)
        value = self._pipeline(node.text, dot, names)
        if node.kind == "action":
            return shown(value)
        inner = value if node.kind == "with" else dot
        branch = (node.body, inner) if value else (node.otherwise, dot)
        return self._nodes(*branch, names)

    def _range(self, node: Node, dot: Any, names: dict[str, Any]) -> str:
        variables, _, text = node.text.partition(":=")
        key, value = (name.strip() for name in variables.split(","))
        mapping = self._pipeline(text, dot, names)
        return "".join(
            self._nodes(node.body, dot, {**names, key: k, value: v})
            for k, v in sorted(mapping.items())
        )

    def _pipeline(self, text: str, dot: Any, names: dict[str, Any]) -> Any:
        words = WORD.findall(text)
        value, rest = self._command(words, dot, names, ())
        assert not rest, f"cannot read {text!r}"
        return value

    def _command(
        self, words: list[str], dot: Any, names: dict[str, Any], piped: tuple[Any, ...]
    ) -> tuple[Any, list[str]]:
        """The value of `f a b | g c`, up to a closing parenthesis."""
        arguments: list[Any] = []
        function = ""
        while words and words[0] not in ("|", ")"):
            word, *words = words
            if word == "(":
                value, words = self._command(words, dot, names, ())
                words = words[1:]
                arguments.append(value)
            elif not arguments and not function and word in FUNCTIONS | {"include": None}:
                function = word
            else:
                arguments.append(operand(word, dot, names))
        arguments += piped
        if function == "include":
            value = self._nodes(self.defined[arguments[0]], arguments[1], {})
        elif function:
            value = FUNCTIONS[function](*arguments)
        else:
            (value,) = arguments
        if words and words[0] == "|":
            return self._command(words[1:], dot, names, (value,))
        return value, words


def operand(word: str, dot: Any, names: dict[str, Any]) -> Any:
    if word.startswith('"'):
        return word[1:-1].replace('\\"', '"')
    if re.fullmatch(r"-?\d+", word):
        return int(word)
    if word.startswith("$"):
        return names[word]
    assert word.startswith("."), f"unknown word {word!r}"
    for name in word.strip(".").split("."):
        if name:
            dot = dot[name]  # a missing key is a mistake in the chart
    return dot


def shown(value: Any) -> str:
    return (
        {True: "true", False: "false"}.get(value, value) if isinstance(value, bool) else str(value)
    )


def nindent(count: int, text: str) -> str:
    return "\n" + "\n".join(" " * count + line if line else "" for line in text.splitlines())


FUNCTIONS: dict[str, Any] = {
    "quote": lambda value: '"' + shown(value).replace("\\", "\\\\").replace('"', '\\"') + '"',
    "default": lambda fallback, value: value or fallback,
    "nindent": nindent,
    "toYaml": lambda value: yaml.safe_dump(value, sort_keys=False).rstrip("\n"),
    "trunc": lambda count, text: text[:count],
    "trimSuffix": lambda suffix, text: text.removesuffix(suffix),
    "add": lambda *numbers: sum(numbers),
    "eq": lambda a, b: a == b,
    "not": lambda value: not value,
    "printf": lambda form, *values: form.replace("%s", "{}").format(*values),
}
