"""Requests with a grammar over the socket: compiled, refused, aborted."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from engine.stack import WAIT_S, Stack, params, tokens_of, wait_for
from octavo.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Callable


def test_a_grammar_is_refused_where_there_is_no_compiler(serve: Callable[..., Stack]) -> None:
    client = serve().connect()
    with pytest.raises(InvalidRequestError):
        tokens_of(client.submit([1, 2, 3], params(5, grammar="start: x")))
    assert tokens_of(client.submit([1, 2, 3], params(2))) == [4, 5]


class Compiled:
    matcher = None
    mask = b""


class SlowCompiler:
    """Compiles when it is told to; the text "bad" is none."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.began = threading.Event()

    def compile(self, text: str) -> Compiled:
        self.began.set()
        assert self.go.wait(WAIT_S)
        if text == "bad":
            raise InvalidRequestError("The grammar is bad.")
        return Compiled()


def test_grammars_over_the_socket(
    serve: Callable[..., Stack], monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = SlowCompiler()
    monkeypatch.setattr("octavo.engine.grammars.MaskMaker.add", lambda *_: None)
    stack = serve(compiler=compiler)
    client = stack.connect()
    good = client.submit([1, 2, 3], params(2, grammar="good"))
    bad = client.submit([1, 2, 3], params(2, grammar="bad"))
    gone = client.submit([1, 2, 3], params(2, grammar="good"))
    assert compiler.began.wait(WAIT_S)
    assert tokens_of(client.submit([1, 2, 3], params(2))) == [4, 5]  # nobody else waits
    gone.abort()
    wait_for(lambda: len(stack.endpoint._grammars._ids) == 2, "the abort")
    leaver = stack.connect()
    leaver.submit([1, 2, 3], params(2, grammar="good"))
    wait_for(lambda: len(stack.endpoint._grammars._ids) == 3, "the submit")
    leaver.close()
    wait_for(lambda: len(stack.endpoint._grammars._ids) == 2, "the client's end")
    compiler.go.set()
    assert tokens_of(good) == [4, 5]
    with pytest.raises(InvalidRequestError, match="bad"):
        tokens_of(bad)
    wait_for(lambda: len(stack.endpoint._connections) == 1, "the connection's end")
    assert not any(each.live for each in stack.endpoint._connections.values())
