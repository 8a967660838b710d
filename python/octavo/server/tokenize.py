"""POST /tokenize and /detokenize, GET /tokenizer_info."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from octavo.errors import InvalidRequestError
from octavo.server.conversation import conversation_of, render
from octavo.server.offload import offload
from octavo.server.openapi import Operation
from octavo.server.schemas.sampling import check_token_ids
from octavo.server.schemas.tokens import (
    DetokenizeRequest,
    DetokenizeResponse,
    TokenizeRequest,
    TokenizeResponse,
    TokenizerInfo,
)

if TYPE_CHECKING:
    import falcon

    from octavo.server.context import ServerContext
    from octavo.server.served_model import ServedModel

_TOKENIZE = msgspec.json.Decoder(TokenizeRequest)
_DETOKENIZE = msgspec.json.Decoder(DetokenizeRequest)


class TokenizeResource:
    """Text or a conversation to tokens."""

    operations = {  # noqa: RUF012 - a constant
        "post": Operation(
            summary="Text to tokens", request=TokenizeRequest, answer=TokenizeResponse
        )
    }

    def __init__(self, context: ServerContext) -> None:
        self._context = context

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Exactly the tokens that the model would be given."""
        request = self._context.read(req, _TOKENIZE)
        self._context.check_model(request.model)
        info, model = self._context.model_info(), self._context.model()
        text, special = _text(request, model)
        tokens = offload(model.tokenizer.encode, text, add_special_tokens=special)
        strings = None
        if request.return_token_strs:
            data = map(model.tokenizer.token_bytes.of, tokens)
            strings = [each.decode(errors="replace") for each in data]
        resp.data = msgspec.json.encode(
            TokenizeResponse(
                count=len(tokens),
                max_model_len=info.max_model_len,
                tokens=tokens,
                token_strs=strings,
            )
        )


class DetokenizeResource:
    """Tokens to text."""

    operations = {  # noqa: RUF012 - a constant
        "post": Operation(
            summary="Tokens to text", request=DetokenizeRequest, answer=DetokenizeResponse
        )
    }

    def __init__(self, context: ServerContext) -> None:
        self._context = context

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        """The text of the tokens, special ones included."""
        request = self._context.read(req, _DETOKENIZE)
        self._context.check_model(request.model)
        info, model = self._context.model_info(), self._context.model()
        check_token_ids(request.tokens, info.vocab_size, "tokens")
        decode = model.tokenizer.token_bytes.decode
        text = offload(decode, request.tokens, skip_special_tokens=False)
        resp.data = msgspec.json.encode(DetokenizeResponse(prompt=text))


class TokenizerInfoResource:
    """Facts about the tokenizer."""

    operations = {  # noqa: RUF012 - a constant
        "get": Operation(summary="Facts about the tokenizer", answer=TokenizerInfo)
    }

    def __init__(self, context: ServerContext) -> None:
        self._context = context

    def on_get(self, _req: falcon.Request, resp: falcon.Response) -> None:
        """What a client needs to prepare prompts itself."""
        info, model = self._context.model_info(), self._context.model()
        special = model.tokenizer.special_tokens
        resp.data = msgspec.json.encode(
            TokenizerInfo(
                tokenizer_class=type(model.tokenizer).__name__,
                vocab_size=model.tokenizer.vocab_size,
                max_model_len=info.max_model_len,
                eos_token_ids=list(model.eos_token_ids),
                bos_token=special.get("bos_token"),
                eos_token=special.get("eos_token"),
                pad_token=special.get("pad_token"),
                unk_token=special.get("unk_token"),
                chat_template=model.chat_template.source if model.chat_template else None,
            )
        )

    on_head = on_get


def _text(request: TokenizeRequest, model: ServedModel) -> tuple[str, bool]:
    """The text to encode, and whether the tokenizer adds special tokens around it."""
    if (request.prompt is None) == (request.messages is None):
        raise InvalidRequestError("prompt: give either prompt or messages.", param="prompt")
    if request.prompt is not None:
        return request.prompt, request.add_special_tokens is not False
    return render(conversation_of(request), model), bool(request.add_special_tokens)
