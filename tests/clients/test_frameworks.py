"""Frameworks that speak the OpenAI API, against the real server; each in its own words."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from clients.conftest import KEY
from clients.environments import package, run_script

if TYPE_CHECKING:
    from e2e.live_server import LiveServer

QUESTION = "What is the capital of France?"
ANSWER = "The capital of France is Paris."

# What the packages warn about concerns themselves.
pytestmark = pytest.mark.filterwarnings("ignore")


class TestLangChain:
    @pytest.fixture
    def chat(self, server: LiveServer) -> object:
        langchain = package("langchain_openai", "langchain-openai")
        return langchain.ChatOpenAI(
            model="smollm2", base_url=f"{server.url}/v1", api_key=KEY, temperature=0
        )

    def test_invoke(self, chat) -> None:
        answer = chat.invoke(QUESTION)
        assert answer.content == ANSWER
        assert answer.usage_metadata["output_tokens"] == 8

    def test_stream(self, chat) -> None:
        assert "".join(chunk.content for chunk in chat.stream(QUESTION)) == ANSWER

    def test_structured_output(self, chat) -> None:
        schema = {
            "title": "capital",
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 40}},
            "required": ["city"],
            "additionalProperties": False,
        }
        answer = chat.with_structured_output(schema).invoke(QUESTION, max_tokens=128)
        assert set(answer) == {"city"}

    def test_batch(self, chat) -> None:
        answers = chat.batch([QUESTION] * 4)
        assert [answer.content for answer in answers] == [ANSWER] * 4


def test_litellm(server: LiveServer) -> None:
    """In a process of its own: it leaves an event loop behind."""
    package("litellm")
    said = run_script("", "litellm_client.py", server.url, KEY)
    assert said == {"answer": ANSWER, "streamed": ANSWER, "asynchronous": ANSWER}
