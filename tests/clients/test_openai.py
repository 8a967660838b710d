"""The openai package against the real server."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pydantic
import pytest

from clients.conftest import KEY
from clients.environments import package

if TYPE_CHECKING:
    from collections.abc import Iterator

    from e2e.live_server import LiveServer

openai = package("openai")

MESSAGES = [{"role": "user", "content": "What is the capital of France?"}]
ANSWER = "The capital of France is Paris."


class Capital(pydantic.BaseModel):
    country: str
    city: str


@pytest.fixture(scope="module")
def client(server: LiveServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0) as made:
        yield made


def test_models(client: openai.OpenAI) -> None:
    models = client.models.list().data
    assert [model.id for model in models] == ["smollm2"]
    assert client.models.retrieve("smollm2").object == "model"


def test_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="smollm2", messages=MESSAGES, temperature=0, max_completion_tokens=20
    )
    assert answer.choices[0].message.content == ANSWER
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.prompt_tokens_details.cached_tokens >= 0


def test_chat_stream(client: openai.OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model="smollm2",
            messages=MESSAGES,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(c.delta.content or "" for chunk in chunks for c in chunk.choices)
    assert text == ANSWER
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 8


def test_stream_helper(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(
        model="smollm2", messages=MESSAGES, temperature=0
    ) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= kinds
    assert final.choices[0].message.content == ANSWER


def test_chat_logprobs(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="smollm2", messages=MESSAGES, temperature=0, logprobs=True, top_logprobs=3
    )
    content = answer.choices[0].logprobs.content
    assert "".join(bytes(entry.bytes).decode() for entry in content[:-1]) == ANSWER
    for entry in content:
        assert len(entry.top_logprobs) == 3
        assert entry.top_logprobs[0].logprob == entry.logprob
        assert entry.top_logprobs[0].token == entry.token


def test_n_and_seed(client: openai.OpenAI) -> None:
    def texts() -> list[str | None]:
        answer = client.chat.completions.create(
            model="smollm2", messages=MESSAGES, n=3, seed=7, temperature=1.2, max_tokens=12
        )
        return [choice.message.content for choice in answer.choices]

    first = texts()
    assert len(set(first)) > 1
    assert texts() == first


def test_completions(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model="smollm2", prompt="The capital of France is", max_tokens=2, temperature=0, logprobs=2
    )
    assert answer.choices[0].text == " Paris."
    assert answer.choices[0].finish_reason == "length"
    assert answer.choices[0].logprobs.tokens == [" Paris", "."]
    chunks = list(
        client.completions.create(
            model="smollm2",
            prompt="The capital of France is",
            max_tokens=2,
            temperature=0,
            stream=True,
        )
    )
    assert "".join(chunk.choices[0].text for chunk in chunks) == " Paris."


def test_stop(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="smollm2", messages=MESSAGES, temperature=0, stop=[" Paris", "London"]
    )
    assert answer.choices[0].message.content == "The capital of France is"
    assert answer.choices[0].finish_reason == "stop"


def test_extra_body(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="smollm2",
        messages=MESSAGES,
        temperature=0,
        max_tokens=3,
        extra_body={"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1, "ignore_eos": True},
    )
    assert answer.usage.completion_tokens == 3


def test_responses(client: openai.OpenAI) -> None:
    answer = client.responses.create(
        model="smollm2", input="What is the capital of France?", temperature=0
    )
    assert answer.output_text == ANSWER
    assert answer.status == "completed"
    assert answer.usage.output_tokens == 8
    assert client.responses.retrieve(answer.id).output_text == ANSWER
    more = client.responses.create(
        model="smollm2",
        input="And of Italy?",
        previous_response_id=answer.id,
        temperature=0,
        max_output_tokens=16,
    )
    assert more.usage.input_tokens > answer.usage.total_tokens


def test_responses_in_the_background(client: openai.OpenAI) -> None:
    question = "What is the capital of France?"
    begun = client.responses.create(model="smollm2", input=question, background=True, temperature=0)
    assert begun.status == "queued"
    deadline = time.monotonic() + 60
    while (answer := client.responses.retrieve(begun.id)).status in ("queued", "in_progress"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert (answer.status, answer.output_text) == ("completed", ANSWER)
    [item] = client.responses.input_items.list(begun.id).data
    assert item.content[0].text == question
    client.responses.delete(begun.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(begun.id)
    long = client.responses.create(
        model="smollm2", input="Count to a thousand.", background=True, max_output_tokens=4000
    )
    assert client.responses.cancel(long.id).status == "cancelled"
    assert client.responses.retrieve(long.id).status == "cancelled"


def test_background_responses_are_streamed_and_resumed(client: openai.OpenAI) -> None:
    begun = client.responses.create(
        model="smollm2",
        input="What is the capital of France?",
        background=True,
        stream=True,
        temperature=0,
    )
    first = next(iter(begun))
    assert (first.type, first.sequence_number) == ("response.created", 0)
    assert first.response.status == "queued"
    id_ = first.response.id
    begun.close()  # the response is made all the same
    rest = list(client.responses.retrieve(id_, stream=True, starting_after=0))
    assert [each.sequence_number for each in rest] == list(range(1, len(rest) + 1))
    assert [each.type for each in rest[:2]] == ["response.queued", "response.in_progress"]
    assert rest[-1].type == "response.completed"
    assert rest[-1].response.output_text == ANSWER
    assert client.responses.retrieve(id_).output_text == ANSWER
    again = list(client.responses.retrieve(id_, stream=True, starting_after=5))
    assert again == rest[5:]
    with client.responses.stream(response_id=id_, starting_after=0) as helper:
        assert [each.type for each in helper][-1] == "response.completed"


def test_cancelling_ends_a_background_stream(client: openai.OpenAI) -> None:
    stream = client.responses.create(
        model="smollm2",
        input="Count to a thousand.",
        background=True,
        stream=True,
        max_output_tokens=4000,
    )
    id_ = ""
    for each in stream:
        if each.type == "response.created":
            id_ = each.response.id
        elif each.type == "response.output_text.delta" and id_:
            assert client.responses.cancel(id_).status == "cancelled"
            id_ = ""
    assert each.type == "response.cancelled"
    assert each.response["status"] == "cancelled"  # of an event that the client has no class for
    assert each.response["output"][0]["status"] == "incomplete"


def test_responses_stream(client: openai.OpenAI) -> None:
    with client.responses.stream(
        model="smollm2", input="What is the capital of France?", temperature=0
    ) as stream:
        text = "".join(e.delta for e in stream if e.type == "response.output_text.delta")
        final = stream.get_final_response()
    assert text == final.output_text == ANSWER


def test_parse(client: openai.OpenAI) -> None:
    answer = client.chat.completions.parse(
        model="smollm2",
        messages=MESSAGES,
        response_format=Capital,
        temperature=0,
        max_tokens=128,
    )
    assert isinstance(answer.choices[0].message.parsed, Capital)
    response = client.responses.parse(
        model="smollm2",
        input="What is the capital of France?",
        text_format=Capital,
        temperature=0,
        max_output_tokens=128,
    )
    assert isinstance(response.output_parsed, Capital)


def test_errors(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="gpt-4", messages=MESSAGES)
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as too_long:
        client.completions.create(model="smollm2", prompt="x", max_tokens=100_000)
    assert too_long.value.code == "context_length_exceeded"
    assert too_long.value.param == "max_tokens"
    with pytest.raises(openai.BadRequestError) as wrong:
        client.chat.completions.create(model="smollm2", messages=MESSAGES, temperature=-1)
    assert wrong.value.param == "temperature"


async def _ask_asynchronously(url: str) -> str | None:
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=KEY) as client:
        answer = await client.chat.completions.create(
            model="smollm2", messages=MESSAGES, temperature=0
        )
        return answer.choices[0].message.content


def test_async(server: LiveServer) -> None:
    assert asyncio.run(_ask_asynchronously(server.url)) == ANSWER


def test_embeddings(client: openai.OpenAI) -> None:
    texts = ["The cat sat on the mat.", "A cat is sitting on a mat.", "Stocks fell by 3 percent."]
    pooled = {"pooling": "mean"}
    answer = client.embeddings.create(model="smollm2", input=texts, extra_body=pooled)
    vectors = [each.embedding for each in answer.data]
    assert [each.index for each in answer.data] == [0, 1, 2]
    assert {len(vector) for vector in vectors} == {576}

    def likeness(one: list[float], other: list[float]) -> float:
        return sum(a * b for a, b in zip(one, other, strict=True))

    assert likeness(vectors[0], vectors[0]) == pytest.approx(1.0, abs=1e-5)
    assert likeness(vectors[0], vectors[1]) > likeness(vectors[0], vectors[2])
    plain = client.embeddings.create(
        model="smollm2", input=texts[0], encoding_format="float", extra_body=pooled
    )
    assert plain.data[0].embedding == pytest.approx(vectors[0], abs=1e-3)
    assert plain.usage.prompt_tokens == plain.usage.total_tokens > 0
    with pytest.raises(openai.BadRequestError, match="576 dimensions"):
        client.embeddings.create(model="smollm2", input="x", dimensions=64)
