"""One HTTP worker's application with all it depends on."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from octavo.engine.socket_client import SocketEngineClient
from octavo.engine.status_page import PHASES
from octavo.model.resolve import RemoteModel
from octavo.server.app import create_app
from octavo.server.context import ServerContext
from octavo.server.preflight import find_model
from octavo.server.readiness import Deferred, Readiness
from octavo.server.served_model import ServedModel
from octavo.server.tracing import Tracing

if TYPE_CHECKING:
    from octavo.config import ServeConfig
    from octavo.engine.runtime import Runtime
    from octavo.engine.status_page import StatusPage
    from octavo.model.resolve import ResolvedModel
    from octavo.server.app import App
    from octavo.server.request_metrics import RequestMetrics

_DOWNLOAD_TICK_S = 0.1
_DOWNLOADED = PHASES.index("downloading") + 1


@dataclass(frozen=True)
class Assembly:
    """A worker's application.

    Attributes:
        app: The WSGI application; it answers probes at once.
        client: Its connection to the engine.
        config: The server's settings.
        page: The server's status page.
        model: The text side of the model, once load() is done.
        tracing: Sends spans, once load() is done; None sends none.
    """

    app: App
    client: SocketEngineClient
    config: ServeConfig
    page: StatusPage
    model: Deferred[ServedModel]
    tracing: Tracing | None = None

    def load(self) -> None:
        """Load tokenizer and template, after the engine has downloaded them where it has to.

        Raises:
            OctavoError: They are not there, or of no use.
        """
        if self.tracing is not None:
            self.tracing.start()
        self.model.set(load_served_model(self.config, self._await_model()))

    def close(self) -> None:
        """Let go of the engine, and send the last spans."""
        self.client.close()
        if self.tracing is not None:
            self.tracing.close()

    def _await_model(self) -> ResolvedModel:
        """Look for the model, and again each time the engine may have downloaded it."""
        while isinstance(found := find_model(self.config), RemoteModel):
            time.sleep(_DOWNLOAD_TICK_S)
            while PHASES.index(self.page.engine_phase) < _DOWNLOADED:
                time.sleep(_DOWNLOAD_TICK_S)
        return found


def assemble(config: ServeConfig, runtime: Runtime, metrics: RequestMetrics) -> Assembly:
    """Build a worker's application and begin to connect it to the engine.

    Args:
        config: The server's settings; it is ready once api_server_count workers are.
        runtime: What its processes share.
        metrics: Where this worker counts.
    """
    client = SocketEngineClient(runtime.socket_path, runtime.page)
    model: Deferred[ServedModel] = Deferred()
    endpoint = config.otlp_traces_endpoint
    tracing = Tracing(endpoint, config.model_names[0]) if endpoint else None
    context = ServerContext(
        engine=client,
        config=config,
        model=model.get,
        metrics=metrics,
        api_keys=config.api_keys(),
        tracing=tracing,
    )

    def is_worker_ready() -> bool:
        others = runtime.page.has_workers(config.api_server_count)
        return others and model.is_loaded and client.is_connected()

    readiness = Readiness(client, is_worker_ready)
    app = create_app(context, readiness)
    client.start()
    return Assembly(app, client, config, runtime.page, model, tracing)


def load_served_model(config: ServeConfig, found: ResolvedModel) -> ServedModel:
    """Read the text side of a model.

    Raises:
        OctavoError: As octavo.model.files.ModelFiles.
    """
    from octavo.model.files import ModelFiles  # noqa: PLC0415 - after the first probe's answer

    files = ModelFiles(found)
    tokenizer = files.tokenizer(config.tokenizer)
    generation = files.generation_config()
    return ServedModel(
        tokenizer=tokenizer,
        chat_template=files.chat_template(tokenizer, config.chat_template),
        eos_token_ids=generation.eos_token_ids,
        defaults=generation,
    )
