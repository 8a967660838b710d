"""`octavo complete` against a server of the test's making."""

from __future__ import annotations

import argparse
import io
import json
import sys
from typing import Any

import pytest

from cli.chat_server import ChatServer
from octavo.cli import complete
from octavo.errors import ConfigError


def run(*words: str) -> int:
    parser = argparse.ArgumentParser()
    complete.add_parser(parser.add_subparsers())
    arguments = parser.parse_args(["complete", *words])
    return int(arguments.run(arguments))


def test_a_prompt_is_continued(capsys: pytest.CaptureFixture[str]) -> None:
    with ChatServer(" time", " there was") as server:
        assert run("Once upon a", "--url", server.url, "--top-k", "5", "--seed", "7") == 0
    assert capsys.readouterr().out == " time there was\n"
    [body] = server.asked
    expected = {"prompt": "Once upon a", "model": "demo/model", "top_k": 5, "seed": 7}
    assert {name: body[name] for name in expected} == expected
    assert "POST /v1/completions HTTP/1.1" in server.heads[-1]


def test_the_prompt_may_be_echoed(capsys: pytest.CaptureFixture[str]) -> None:
    with ChatServer(" time") as server:
        assert run("Once upon a", "--url", server.url, "--echo", "--stats") == 0
    output = capsys.readouterr()
    assert output.out == "Once upon a time\n"
    assert "cut at the longest length" in output.err


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    with ChatServer(" é", "\n") as server:
        assert run("x", "--url", server.url, "--json") == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert document["text"] == " é\n"
    assert (document["prompt_tokens"], document["completion_tokens"]) == (7, 2)
    assert document["finish_reason"] == "length"
    assert 0 < document["first_token_s"] <= document["total_s"]


@pytest.mark.parametrize("words", [[], ["-"]])
def test_the_prompt_may_come_from_a_pipe(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("Two\nlines\n"))
    with ChatServer() as server:
        assert run(*words, "--url", server.url) == 0
    assert server.asked[0]["prompt"] == "Two\nlines\n"


def test_an_empty_prompt_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    with pytest.raises(ConfigError, match="empty"):
        run()


def test_a_number_that_is_none_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        run("x", "--top-k", "many")
    assert exit_.value.code == 2
    assert "--top-k" in capsys.readouterr().err
