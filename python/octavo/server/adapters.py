"""POST /v1/load_lora_adapter and /v1/unload_lora_adapter: adapters come and go at run time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from octavo.server.models import model_card
from octavo.server.openapi import Operation
from octavo.server.schemas.adapters import LoadAdapterRequest, UnloadAdapterRequest
from octavo.server.schemas.shared import ModelCard

if TYPE_CHECKING:
    import falcon

    from octavo.server.context import ServerContext

_LOAD_DECODER = msgspec.json.Decoder(LoadAdapterRequest)
_UNLOAD_DECODER = msgspec.json.Decoder(UnloadAdapterRequest)

_LOAD_S = 600.0  # a large adapter from a slow disk
_UNLOAD_S = 30.0


class LoadAdapterResource:
    """Loads adapters."""

    is_admin = True
    operations = {  # noqa: RUF012 - a constant
        "post": Operation(
            summary="Load an adapter (LoRA) from below --lora-root",
            request=LoadAdapterRequest,
            answer=ModelCard,
        )
    }

    def __init__(self, context: ServerContext) -> None:
        self._context = context

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Load one; the card that /v1/models lists from now on, in every worker."""
        request = self._context.read(req, _LOAD_DECODER)
        self._context.engine.load_adapter(
            request.lora_name, request.lora_path, replaces=request.load_inplace, timeout=_LOAD_S
        )
        resp.data = msgspec.json.encode(model_card(self._context, request.lora_name))


class UnloadAdapterResource:
    """Unloads adapters."""

    is_admin = True
    operations = {  # noqa: RUF012 - a constant
        "post": Operation(summary="Unload an adapter (LoRA)", request=UnloadAdapterRequest)
    }

    def __init__(self, context: ServerContext) -> None:
        self._context = context

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Refuse new requests for one; those that run go on to their end."""
        request = self._context.read(req, _UNLOAD_DECODER)
        self._context.engine.unload_adapter(request.lora_name, _UNLOAD_S)
        resp.data = b"{}"
