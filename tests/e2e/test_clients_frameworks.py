"""Frameworks that speak the OpenAI API, against the real server; each in its own words."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from live_server import LiveServer, live_server

if TYPE_CHECKING:
    from collections.abc import Iterator

QUESTION = "What is the capital of France?"
ANSWER = "The capital of France is Paris."

# What the packages warn about concerns themselves.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with live_server() as running:
        yield running


class TestLangChain:
    @pytest.fixture
    def chat(self, server: LiveServer) -> object:
        langchain = pytest.importorskip("langchain_openai")
        return langchain.ChatOpenAI(
            model="smollm2", base_url=f"{server.url}/v1", api_key="none", temperature=0
        )

    def test_invoke(self, chat) -> None:
        answer = chat.invoke(QUESTION)
        assert answer.content == ANSWER
        assert answer.usage_metadata["output_tokens"] == 8

    def test_stream(self, chat) -> None:
        assert "".join(chunk.content for chunk in chat.stream(QUESTION)) == ANSWER

    def test_batch(self, chat) -> None:
        answers = chat.batch([QUESTION] * 4)
        assert [answer.content for answer in answers] == [ANSWER] * 4


class TestLlamaIndex:
    @pytest.fixture
    def model(self, server: LiveServer) -> object:
        like = pytest.importorskip("llama_index.llms.openai_like")
        return like.OpenAILike(
            model="smollm2",
            api_base=f"{server.url}/v1",
            api_key="none",
            is_chat_model=True,
            temperature=0,
        )

    def test_chat(self, model) -> None:
        messages = pytest.importorskip("llama_index.core.llms")
        answer = model.chat([messages.ChatMessage(role="user", content=QUESTION)])
        assert answer.message.content == ANSWER

    def test_stream(self, model) -> None:
        messages = pytest.importorskip("llama_index.core.llms")
        pieces = model.stream_chat([messages.ChatMessage(role="user", content=QUESTION)])
        assert "".join(piece.delta for piece in pieces) == ANSWER


class TestLiteLLM:
    def ask(self, server: LiveServer, **options: object) -> object:
        litellm = pytest.importorskip("litellm")
        return litellm.completion(
            model="openai/smollm2",
            api_base=f"{server.url}/v1",
            api_key="none",
            messages=[{"role": "user", "content": QUESTION}],
            temperature=0,
            **options,
        )

    def test_completion(self, server: LiveServer) -> None:
        assert self.ask(server).choices[0].message.content == ANSWER

    def test_stream(self, server: LiveServer) -> None:
        chunks = self.ask(server, stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == ANSWER


def test_evaluation_harness(server: LiveServer) -> None:
    """lm-eval's local-completions: token ids in batches, echo, logprobs; and generation."""
    models = pytest.importorskip("lm_eval.models.openai_completions")
    instance = pytest.importorskip("lm_eval.api.instance").Instance
    model = models.LocalCompletionsAPI(
        base_url=f"{server.url}/v1/completions",
        model="smollm2",
        tokenizer_backend="remote",
        num_concurrent=2,
        max_length=2048,
    )
    pairs = [("The capital of France is", " Paris"), ("The capital of France is", " London")]
    requests = [instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
    (paris, is_greedy), (london, _) = model.loglikelihood(requests)
    assert is_greedy
    assert paris > london
    settings = {"until": ["."], "max_gen_toks": 8, "temperature": 0}
    request = instance("generate_until", {}, ("The capital of France is", settings), 0)
    assert model.generate_until([request]) == [" Paris"]
