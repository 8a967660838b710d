"""What every route is given."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from octavo.engine.client import card_of
from octavo.errors import NotReadyError, UnknownModelError
from octavo.server.offload import offload
from octavo.server.request_body import read_body
from octavo.server.schemas.decode import decode
from octavo.server.schemas.sizes import PromptRoom

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import falcon
    import msgspec

    from octavo.config import ServeConfig
    from octavo.engine.client import AdapterCard, EngineClient, ModelInfo
    from octavo.server.request_metrics import RequestMetrics
    from octavo.server.served_model import ServedModel
    from octavo.server.tracing import Tracing

T = TypeVar("T")

_REFRESH_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerContext:
    """The app's dependencies.

    Attributes:
        engine: Runs requests.
        config: The server's settings.
        model: The tokenizer and its like; raises NotReadyError while they load.
        metrics: Takes what requests measure.
        api_keys: Keys of which a request needs one; empty lets everybody in.
        tracing: Makes spans of requests; None makes none.
        started: Unix time of the app's start.
    """

    engine: EngineClient
    config: ServeConfig
    model: Callable[[], ServedModel]
    metrics: RequestMetrics
    api_keys: tuple[str, ...] = ()
    tracing: Tracing | None = None
    started: int = field(default_factory=lambda: int(time.time()))

    def read(
        self, req: falcon.Request, decoder: msgspec.json.Decoder[T], *, fits_context: bool = False
    ) -> T:
        """The request's body.

        Args:
            req: The request.
            decoder: Of its body.
            fits_context: A `prompt` that the context cannot hold is refused before it is built.

        Raises:
            RequestError: Not JSON, too large, or not as the schema asks.
        """
        deadline_s = 2 * self.config.client_timeout
        body = read_body(req, self.config.max_body_bytes, deadline_s)
        return decode(decoder, body, self._prompt_room if fits_context else None)

    def _prompt_room(self) -> PromptRoom:
        token_bytes = self.model().tokenizer.token_bytes
        density = offload(getattr, token_bytes, "density")  # looks at the whole vocabulary once
        return PromptRoom(self.model_info().max_model_len, density)

    def model_info(self) -> ModelInfo:
        """Facts of the engine's model.

        Raises:
            NotReadyError: It is not loaded.
        """
        return self.engine.model_info()

    def check_model(self, name: str | None) -> str:
        """The name that the answer carries.

        Raises:
            UnknownModelError: Neither the model that is served here nor one of its adapters.
        """
        names = self.config.model_names
        if name is None:
            return names[0]
        if name not in names and not self._has_adapter(name):
            raise UnknownModelError(f"The model {name[:200]!r} is not served here.", param="model")
        return name

    def adapter_of(self, name: str) -> str:
        """The adapter of a name that check_model() let pass; "" for the model itself."""
        return "" if name in self.config.model_names else name

    def adapters(self) -> Mapping[str, AdapterCard]:
        """The adapters by name; while the engine loads, those that it will have."""
        try:
            self.engine.model_info()
        except NotReadyError:
            return {each.name: card_of(each) for each in self.config.adapters}
        return self.engine.adapters()

    def _has_adapter(self, name: str) -> bool:
        """Whether it is there; one that another worker has just loaded may be news to this one."""
        if not self.config.has_loras:
            return False
        if name in self.adapters():
            return True
        with contextlib.suppress(NotReadyError):
            self.engine.refresh_adapters(_REFRESH_S)
        return name in self.engine.adapters()
