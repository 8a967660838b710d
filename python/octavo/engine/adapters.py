"""The adapters (LoRA) of a running engine, by name. Loading one holds up no request."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from octavo.engine.client import card_of
from octavo.errors import ConfigError, InvalidRequestError, OctavoError, UnknownModelError
from octavo.lora_modules import LoraModule, check_name
from octavo.model.lora import Adapter, halves_in_turns

if TYPE_CHECKING:
    from collections.abc import Sequence

    from octavo.config import ServeConfig
    from octavo.engine.client import AdapterCard


_AUTO_RANK = 64  # the greatest that is common


class LoraEngine(Protocol):
    """What is needed of octavo._core.Engine, which documents it."""

    def begin_lora(self) -> int:
        """Reserve room for an adapter."""

    def load_lora(
        self,
        lora_id: int,
        target: str,
        scale: float,
        a: tuple[str, int, int, Any],
        b: tuple[str, int, int, Any],
    ) -> None:
        """Copy one projection's pair."""

    def open_lora(self, lora_id: int) -> None:
        """Let requests name it."""

    def close_lora(self, lora_id: int) -> None:
        """Refuse new requests."""


class BaseModel(msgspec.Struct, frozen=True):
    """What an adapter has to fit.

    Attributes:
        targets: The projections that it can change: name, input and output features.
        max_rank: Of an adapter.
        turned_head_dim: Where the rows of q and k are stored as halves of a head in turns, as in
            GGUF Llamas, the size of a head; else 0.
    """

    targets: tuple[tuple[str, int, int], ...]
    max_rank: int
    turned_head_dim: int = 0


class Adapters:
    """Loads and unloads adapters, and knows which are there. For any thread.

    Args:
        engine: Has room for adapters, or says that it has none.
        base: What they must fit; None where there is no room.
        taken: Names that belong to the base model.
        roots: Directories below which load_below_root() reads.
    """

    def __init__(
        self,
        engine: LoraEngine,
        base: BaseModel | None,
        taken: Sequence[str] = (),
        roots: Sequence[str] = (),
    ) -> None:
        self._engine = engine
        self._base = base
        self._taken = frozenset(taken)
        self._roots = tuple(Path(root).expanduser().resolve() for root in roots)
        self._ids: dict[str, int] = {}
        self._cards: dict[str, AdapterCard] = {}
        self._lock = threading.Lock()  # of _ids and _cards
        self._load_lock = threading.Lock()  # one is loaded at a time

    def id_of(self, name: str) -> int:
        """The id of a loaded adapter; 0 for "", the base model itself.

        Raises:
            UnknownModelError: There is none of that name.
        """
        if not name:
            return 0
        with self._lock:
            return self._find(name)

    def cards(self) -> list[AdapterCard]:
        """Those that are loaded, in the order in which they came."""
        with self._lock:
            return list(self._cards.values())

    def load(self, module: LoraModule, *, replaces: bool = False) -> None:
        """Load an adapter.

        Args:
            module: Its name and path.
            replaces: One of that name may be there: requests that run keep it.

        Raises:
            ConfigError: There is no room for adapters.
            InvalidRequestError: The name is none or taken, or every place is taken.
            OctavoError: As octavo.model.lora.Adapter.
        """
        if self._base is None:
            raise ConfigError("Adapters need --enable-lora.")
        with self._load_lock:
            self._check_name(module.name, replaces=replaces)
            adapter = Adapter(Path(module.path).expanduser())
            adapter.check_base(self._base.targets, self._base.max_rank)
            lora_id = self._copy(adapter, self._base)
            with self._lock:
                before = self._ids.get(module.name)
                self._ids[module.name] = lora_id
                self._cards[module.name] = card_of(module)
            if before is not None:
                self._engine.close_lora(before)

    def load_below_root(self, name: str, path: str, *, replaces: bool = False) -> None:
        """Load an adapter that a request names.

        Raises:
            InvalidRequestError: It may not or cannot be loaded; the message says why.
        """
        if self._base is None:
            raise InvalidRequestError("Adapters are off: start the server with --enable-lora.")
        module = LoraModule(name, str(self._allowed(path)))
        try:
            self.load(module, replaces=replaces)
        except InvalidRequestError:
            raise
        except OctavoError as error:
            raise InvalidRequestError(str(error), param="lora_path") from None

    def unload(self, name: str) -> None:
        """Refuse new requests for an adapter; those that run go on.

        Raises:
            InvalidRequestError: The name is empty.
            UnknownModelError: There is none of that name.
        """
        if not name:
            raise InvalidRequestError("lora_name: is empty.", param="lora_name")
        with self._lock:  # one that replaces it now is found and closed, or stays
            lora_id = self._find(name)
            del self._ids[name], self._cards[name]
        self._engine.close_lora(lora_id)

    def _find(self, name: str) -> int:
        """Requires: _lock is held."""
        if name not in self._ids:
            raise UnknownModelError(f"The model {name[:200]!r} is not served here.", param="model")
        return self._ids[name]

    def _check_name(self, name: str, *, replaces: bool) -> None:
        try:
            check_name(name)
        except ValueError as error:
            raise InvalidRequestError(f"lora_name: {error}.", param="lora_name") from None
        if name in self._taken or (name in self._ids and not replaces):
            raise InvalidRequestError(f"The name {name[:200]!r} is taken.", param="lora_name")

    def _allowed(self, path: str) -> Path:
        """The directory that a request names: below one of the roots, links followed."""
        for root in self._roots:
            # No name of a file, or a link that leads to itself.
            with contextlib.suppress(ValueError, OSError, RuntimeError):
                found = (root / path).resolve()
                if found.is_relative_to(root) and found.is_dir():
                    return found
        where = "below --lora-root" if self._roots else "allowed: the server has no --lora-root"
        raise InvalidRequestError(
            f"lora_path: {path[:200]!r} is no directory {where}.", param="lora_path"
        )

    def _copy(self, adapter: Adapter, base: BaseModel) -> int:
        """Hand an adapter to the engine; its id."""
        lora_id = self._engine.begin_lora()
        try:
            for module, pair in adapter.pairs.items():
                a, b = adapter.entry(pair.a), adapter.entry(pair.b)
                rows = adapter.read(pair.b)
                if base.turned_head_dim and module.endswith((".q_proj", ".k_proj")):
                    rows = halves_in_turns(rows, b.shape[0], base.turned_head_dim)
                self._engine.load_lora(
                    lora_id,
                    module,
                    pair.scale,
                    (a.dtype, a.shape[0], a.shape[1], adapter.read(pair.a)),
                    (b.dtype, b.shape[0], b.shape[1], rows),
                )
            self._engine.open_lora(lora_id)
        except BaseException:
            self._engine.close_lora(lora_id)
            raise
        return lora_id


def load_adapters(config: ServeConfig, engine: LoraEngine, base: BaseModel | None) -> Adapters:
    """Load those of --lora-modules.

    Raises:
        OctavoError: One cannot be read.
    """
    adapters = Adapters(engine, base, config.model_names, config.lora_root)
    for module in config.adapters:
        adapters.load(module)
    return adapters


def max_lora_rank(config: ServeConfig) -> int:
    """--max-lora-rank, or what "auto" comes to.

    Raises:
        OctavoError: An adapter of --lora-modules cannot be read.
    """
    if config.max_lora_rank:
        return config.max_lora_rank
    ranks = [Adapter(Path(each.path).expanduser()).rank for each in config.adapters]
    return max(ranks, default=_AUTO_RANK)
