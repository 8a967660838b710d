"""The anthropic package against the real server."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from clients.conftest import KEY
from clients.environments import package

if TYPE_CHECKING:
    from collections.abc import Iterator

    from e2e.live_server import LiveServer

anthropic = package("anthropic")

MESSAGES = [{"role": "user", "content": "What is the capital of France?"}]
ANSWER = "The capital of France is Paris."
GREEDY = {"temperature": 0}


@pytest.fixture(scope="module")
def client(server: LiveServer) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=server.url, api_key=KEY, max_retries=0) as made:
        yield made


def test_message(client: anthropic.Anthropic) -> None:
    message = client.messages.create(
        model="smollm2", max_tokens=30, messages=MESSAGES, extra_body=GREEDY
    )
    assert message.content[0].text == ANSWER
    assert message.stop_reason == "end_turn"
    assert message.usage.output_tokens == 8


def test_stream(client: anthropic.Anthropic) -> None:
    with client.messages.stream(
        model="smollm2", max_tokens=30, messages=MESSAGES, extra_body=GREEDY, system="Be brief."
    ) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == final.content[0].text
    assert final.usage.output_tokens > 1
    assert final.stop_reason == "end_turn"


def test_stop_sequence(client: anthropic.Anthropic) -> None:
    message = client.messages.create(
        model="smollm2",
        max_tokens=30,
        messages=MESSAGES,
        extra_body=GREEDY,
        stop_sequences=[" Paris"],
    )
    assert message.content[0].text == "The capital of France is"
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", " Paris")


def test_count_tokens(client: anthropic.Anthropic) -> None:
    count = client.messages.count_tokens(model="smollm2", messages=MESSAGES)
    message = client.messages.create(model="smollm2", max_tokens=1, messages=MESSAGES)
    usage = message.usage
    assert count.input_tokens == usage.input_tokens + usage.cache_read_input_tokens


def test_errors(server: LiveServer, client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError):
        client.messages.create(model="claude", max_tokens=1, messages=MESSAGES)
    with pytest.raises(anthropic.BadRequestError, match="max_tokens"):
        client.messages.create(model="smollm2", max_tokens=20_000, messages=MESSAGES)
    with (
        anthropic.Anthropic(base_url=server.url, api_key="wrong", max_retries=0) as stranger,
        pytest.raises(anthropic.AuthenticationError),
    ):
        stranger.messages.create(model="smollm2", max_tokens=1, messages=MESSAGES)
