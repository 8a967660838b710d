"""GET /v1/models and /v1/models/{id}: answered while the model loads, too."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import msgspec

from octavo.errors import NotReadyError
from octavo.server.openapi import Operation
from octavo.server.schemas.shared import ModelCard, ModelList

if TYPE_CHECKING:
    import falcon

    from octavo.server.context import ServerContext


class ModelsResource:
    """The list of models."""

    answers_while_loading = True

    operations = {  # noqa: RUF012 - a constant
        "get": Operation(summary="The models served here", answer=ModelList)
    }

    def __init__(self, context: ServerContext) -> None:
        self._context = context

    def on_get(self, _req: falcon.Request, resp: falcon.Response) -> None:
        """A card for each name of the model, and for each adapter."""
        names = [*self._context.config.model_names, *self._context.adapters()]
        cards = [model_card(self._context, name) for name in names]
        resp.data = msgspec.json.encode(ModelList(data=cards))

    on_head = on_get


class ModelResource:
    """One model."""

    answers_while_loading = True

    operations = {  # noqa: RUF012 - a constant
        "get": Operation(summary="One model", answer=ModelCard)
    }

    def __init__(self, context: ServerContext) -> None:
        self._context = context

    def on_get(self, _req: falcon.Request, resp: falcon.Response, model_id: str) -> None:
        """Its card."""
        name = self._context.check_model(model_id)
        resp.data = msgspec.json.encode(model_card(self._context, name))

    on_head = on_get


def model_card(context: ServerContext, name: str) -> ModelCard:
    """The card of a model or an adapter; max_model_len is null until the engine is ready."""
    max_model_len = context.config.max_model_len or None
    with contextlib.suppress(NotReadyError):
        max_model_len = context.model_info().max_model_len
    base = context.config.model_names[0]
    adapter = context.adapters().get(name)
    return ModelCard(
        id=name,
        created=context.started,
        root=base if adapter is None else adapter.root,
        parent=None if adapter is None else adapter.parent or base,
        max_model_len=max_model_len,
    )
