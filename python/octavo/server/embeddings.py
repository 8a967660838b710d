"""POST /v1/embeddings: the served model's last hidden states, pooled."""

from __future__ import annotations

import base64
import struct
from typing import TYPE_CHECKING

import msgspec

from octavo.embeddings import embedding_params, finished_embedding
from octavo.errors import EngineFaultError, InvalidRequestError
from octavo.server.disconnect import watch
from octavo.server.error_responses import renamed_param
from octavo.server.offload import offload
from octavo.server.openapi import Operation
from octavo.server.prompts import PromptLimits, prepare_prompts, split_prompts
from octavo.server.schemas.embeddings import (
    Embedding,
    EmbeddingRequest,
    EmbeddingResponse,
    EmbeddingUsage,
)
from octavo.server.work import salt_number

if TYPE_CHECKING:
    from array import array
    from collections.abc import Sequence

    import falcon

    from octavo.engine.client import ModelInfo, RequestOutput, RequestStream
    from octavo.server.context import ServerContext
    from octavo.server.prompts import Prompt

_DECODER = msgspec.json.Decoder(EmbeddingRequest)


class EmbeddingsResource:
    """Turns texts into vectors."""

    operations = {  # noqa: RUF012 - a constant
        "post": Operation(
            summary="Turn texts into vectors", request=EmbeddingRequest, answer=EmbeddingResponse
        )
    }

    def __init__(self, context: ServerContext) -> None:
        self._context = context

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Embed one or several inputs."""
        context = self._context
        request = context.read(req, _DECODER)
        name = context.check_model(request.model)
        prompts = self._prompts(request, context.model_info())
        streams: list[RequestStream] = []

        def abort() -> None:
            for stream in streams:
                stream.abort()

        try:
            for prompt in prompts:
                streams.append(self._submit(request, prompt, name))  # noqa: PERF401 - abort() sees each
            with watch(req.env, abort):
                sums = [_sum_of(stream) for stream in streams]
        finally:
            abort()
        resp.data = offload(_answer, request, name, prompts, sums)

    def _prompts(self, request: EmbeddingRequest, info: ModelInfo) -> list[Prompt]:
        if request.dimensions not in (None, info.hidden_size):
            raise InvalidRequestError(
                f"dimensions: this model's embeddings have {info.hidden_size} dimensions, "
                f"not {request.dimensions}.",
                param="dimensions",
            )
        special = request.add_special_tokens
        limits = PromptLimits(
            param="input",
            vocab_size=info.vocab_size,
            max_model_len=info.max_model_len,
            max_tokens=1,
            add_special_tokens=special is not False,
            truncate=request.truncate_prompt_tokens,
        )
        if request.truncate_prompt_tokens == 0:
            param = "truncate_prompt_tokens"
            raise InvalidRequestError(f"{param}: must be -1, or at least 1.", param=param)
        with renamed_param({"prompt": "input"}):
            inputs = split_prompts(request.input)
        return prepare_prompts(inputs, self._context.model().tokenizer, limits)

    def _submit(self, request: EmbeddingRequest, prompt: Prompt, name: str) -> RequestStream:
        return self._context.engine.submit(
            prompt.token_ids,
            embedding_params(request.pooling or "last"),
            priority=request.priority or 0,
            cache_salt=salt_number(request.cache_salt),
            adapter=self._context.adapter_of(name),
        )


def _sum_of(stream: RequestStream) -> array[float]:
    """Wait for a prompt's pooled states."""
    whole: RequestOutput | None = None
    for output in stream:
        if whole is None:
            whole = output
        else:
            whole.extend(output)
    if whole is None or whole.pooled is None:
        raise EngineFaultError("The engine ended the request.")
    return whole.pooled


def _answer(
    request: EmbeddingRequest, name: str, prompts: Sequence[Prompt], sums: Sequence[array[float]]
) -> bytes:
    sizes = [len(prompt.token_ids) for prompt in prompts]
    data = [
        Embedding(index=index, embedding=_encoded(request, total, size))
        for index, (total, size) in enumerate(zip(sums, sizes, strict=True))
    ]
    usage = EmbeddingUsage(prompt_tokens=sum(sizes), total_tokens=sum(sizes))
    return msgspec.json.encode(EmbeddingResponse(data=data, model=name, usage=usage))


def _encoded(request: EmbeddingRequest, total: array[float], size: int) -> list[float] | str:
    count = size if request.pooling == "mean" else 1
    vector = finished_embedding(total, count, is_unit=request.normalize is not False)
    if request.encoding_format != "base64":
        return vector
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
