"""The HTTP application: its routes and what surrounds them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import falcon

from octavo.server.adapters import LoadAdapterResource, UnloadAdapterResource
from octavo.server.admin import ResetPrefixCacheResource, SelfCheckResource, ServerInfoResource
from octavo.server.chat import ChatResource
from octavo.server.completions import CompletionsResource
from octavo.server.embeddings import EmbeddingsResource
from octavo.server.error_responses import add_error_handlers
from octavo.server.health import probe_routes
from octavo.server.messages import CountTokensResource, MessagesResource
from octavo.server.metrics import LoadResource, MetricsResource
from octavo.server.middleware import ApiKeys, Origins, RequestContext
from octavo.server.models import ModelResource, ModelsResource
from octavo.server.openapi import OpenApiResource
from octavo.server.pages import PageResource
from octavo.server.readiness import ReadinessMiddleware
from octavo.server.response_store import ResponseStore
from octavo.server.responses import (
    CancelResponseResource,
    InputItemsResource,
    ResponseResource,
    ResponsesResource,
)
from octavo.server.sleep import IsSleepingResource, SleepResource, WakeUpResource
from octavo.server.tokenize import (
    DetokenizeResource,
    TokenizeResource,
    TokenizerInfoResource,
)
from octavo.server.version import VersionResource

if TYPE_CHECKING:
    from octavo.server.context import ServerContext
    from octavo.server.readiness import Readiness

App = falcon.App[Any, Any]


def create_app(context: ServerContext, readiness: Readiness) -> App:
    """The WSGI application.

    A resource is open to everybody only where it says `is_open`, and waits for the model unless it
    says `answers_while_loading`.
    """
    app: App = falcon.App(
        middleware=[
            RequestContext(),
            Origins(context.config.allowed_origins),
            ApiKeys(context.api_keys, context.config.admin_api_key),
            ReadinessMiddleware(readiness),
            *([context.tracing] if context.tracing else []),
        ]
    )
    app.req_options.strip_url_path_trailing_slash = False
    add_error_handlers(app)
    for path, resource in routes(context, readiness).items():
        app.add_route(path, resource)
    return app


def routes(context: ServerContext, readiness: Readiness) -> dict[str, object]:
    """Path to resource."""
    store = ResponseStore(is_enabled=context.config.api_server_count == 1)
    openapi = OpenApiResource(context.config.root_path)
    table: dict[str, object] = {
        **probe_routes(readiness, context.engine),
        "/version": VersionResource(),
        "/metrics": MetricsResource(context),
        "/load": LoadResource(context),
        "/v1/models": ModelsResource(context),
        "/v1/models/{model_id:path}": ModelResource(context),
        "/v1/completions": CompletionsResource(context),
        "/v1/chat/completions": ChatResource(context),
        "/v1/embeddings": EmbeddingsResource(context),
        "/v1/messages": MessagesResource(context),
        "/v1/messages/count_tokens": CountTokensResource(context),
        "/v1/responses": ResponsesResource(context, store),
        "/v1/responses/{response_id}": ResponseResource(store),
        "/v1/responses/{response_id}/cancel": CancelResponseResource(store),
        "/v1/responses/{response_id}/input_items": InputItemsResource(store),
        "/tokenize": TokenizeResource(context),
        "/detokenize": DetokenizeResource(context),
        "/tokenizer_info": TokenizerInfoResource(context),
        "/openapi.json": openapi,
        "/docs": PageResource("docs.html"),
        "/": PageResource("playground.html"),
    }
    if context.config.enable_admin:
        table["/reset_prefix_cache"] = ResetPrefixCacheResource(context)
        table["/self_check"] = SelfCheckResource(context)
        table["/v1/load_lora_adapter"] = LoadAdapterResource(context)
        table["/v1/unload_lora_adapter"] = UnloadAdapterResource(context)
        table["/server_info"] = ServerInfoResource(context)
        table["/sleep"] = SleepResource(context, readiness)
        table["/wake_up"] = WakeUpResource(context)
        table["/is_sleeping"] = IsSleepingResource(context)
    openapi.describe(table)
    return table
