"""An app over a scripted engine and a tokenizer of single bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import msgspec
import tokenizers
from falcon.testing import TestClient
from scripted_engine import EOS, ScriptedEngine
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from octavo.config import ServeConfig
from octavo.model.detokenizer import TokenBytes
from octavo.model.generation_config import GenerationConfig
from octavo.server.app import create_app, routes
from octavo.server.context import ServerContext
from octavo.server.readiness import Readiness
from octavo.server.request_metrics import RequestMetrics
from octavo.server.served_model import ServedModel

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from octavo.server.tracing import Tracing

BOS = 256


class ByteTokenizer:
    """Token k is byte k; 256 begins a text, 257 ends one, 258 and 259 are special."""

    vocab_size = 260
    special_tokens: ClassVar[dict[str, str]] = {"bos_token": "<s>", "eos_token": "</s>"}

    def __init__(self) -> None:
        vocab = {character: byte for byte, character in enumerate(_alphabet())}
        tokenizer = tokenizers.Tokenizer(models.BPE(vocab, []))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.add_special_tokens(
            [AddedToken(text, special=True) for text in ("<s>", "</s>", "<|im|>", "<|x|>")]
        )
        self._tokenizer = tokenizer
        self.token_bytes = TokenBytes(tokenizer)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        return [BOS, *ids] if add_special_tokens else ids

    def token_to_id(self, token: str) -> int | None:
        return self._tokenizer.token_to_id(token)


def _alphabet() -> list[str]:
    """The character that byte-level BPE writes for each byte."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    other = iter(range(0x100, 0x200))
    return [chr(byte if byte in plain else next(other)) for byte in range(0x100)]


class PlainTemplate:
    """`role: content` lines.

    Attributes:
        seen: The messages rendered last.
        ending: What comes after the generation prompt.
    """

    source = "{{ messages }}"

    def __init__(self) -> None:
        self.seen: Sequence[dict[str, Any]] = ()
        self.ending = ""

    def render(
        self,
        messages: Sequence[dict[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        self.seen = messages
        lines = [f"{each['role']}: {_text(each['content'])}" for each in messages]
        lines += [f"tool {each['function']['name']}" for each in tools or ()]
        lines += [f"{name}={value}" for name, value in (template_kwargs or {}).items()]
        if add_generation_prompt:
            lines.append("assistant:")
        return "\n".join(lines) + ("" if continue_final_message else "\n") + self.ending


def _text(content: str | list[dict[str, str]] | None) -> str:
    if isinstance(content, list):
        return "\n".join(part["text"] for part in content)
    return content or ""


class Server:
    """A test client, its engine, and shorthands."""

    def __init__(
        self,
        defaults: GenerationConfig | None = None,
        tracing: Tracing | None = None,
        **config: Any,
    ) -> None:
        self.engine = ScriptedEngine()
        self.metrics = RequestMetrics()
        self.template = PlainTemplate()
        self.model = ServedModel(
            tokenizer=ByteTokenizer(),
            chat_template=self.template,
            eos_token_ids=(EOS,),
            defaults=defaults or GenerationConfig(),
        )
        settings = ServeConfig(**{"model": "org/fake", **config})
        context = ServerContext(
            engine=self.engine,
            config=settings,
            model=lambda: self.model,
            metrics=self.metrics,
            api_keys=settings.api_keys(),
            tracing=tracing,
        )
        self.context = context
        self.readiness = Readiness(self.engine, lambda: True)
        self.app = create_app(context, self.readiness)
        self.routes = routes(context, self.readiness)
        self.client = TestClient(self.app)

    def post(self, path: str, body: object, **kwargs: Any) -> Any:
        data = body if isinstance(body, str | bytes) else msgspec.json.encode(body)
        headers = {"Content-Type": "application/json", **kwargs.pop("headers", {})}
        return self.client.simulate_post(path, body=data, headers=headers, **kwargs)

    def complete(self, **body: Any) -> Any:
        return self.post("/v1/completions", {"prompt": "hello", **body})

    def chat(self, text: str = "hello", **body: Any) -> Any:
        body.setdefault("messages", [{"role": "user", "content": text}])
        return self.post("/v1/chat/completions", body)

    def refusal(self, path: str, body: object, status: int = 400) -> dict[str, Any]:
        """The error of a request that must be refused, its shape checked."""
        result = self.post(path, body)
        assert result.status_code == status, result.text[:500]
        error = result.json["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert isinstance(error["message"], str)
        return error


def events(result: Any) -> list[dict[str, Any]]:
    """The JSON of a stream's events; its framing is checked."""
    assert result.status_code == 200, result.text
    assert result.headers["Content-Type"].startswith("text/event-stream")
    blocks = result.text.split("\n\n")
    assert blocks.pop() == ""
    blocks = [block for block in blocks if block != ": keep-alive"]
    assert blocks.pop() == "data: [DONE]"
    assert all(block.startswith("data: {") for block in blocks)
    return [msgspec.json.decode(block.removeprefix("data: ")) for block in blocks]
