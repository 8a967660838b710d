"""Adapters between workers and the engine's process: over a real socket, with a FakeEngine."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING

import numpy as np
import pytest

from engine.stack import WAIT_S, Stack, params, tokens_of, wait_for
from model.adapter_files import random_adapter, write_adapter
from octavo.engine.adapters import Adapters, BaseModel
from octavo.engine.client import AdapterCard
from octavo.errors import EngineFaultError, InvalidRequestError, UnknownModelError
from octavo.lora_modules import LoraModule

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from octavo.engine.socket_client import SocketEngineClient

Q, V = "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj"
TARGETS = ((Q, 8, 12), (V, 8, 6))
BASE = BaseModel(TARGETS, max_rank=8)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for seed, name in enumerate(("poet", "painter", "third")):
        write_adapter(tmp_path / "adapters" / name, random_adapter(TARGETS, seed=seed))
    return tmp_path / "adapters"


@pytest.fixture
def stack(serve: Callable[..., Stack], root: Path) -> Stack:
    return serve(base=BASE, roots=[str(root)], step_s=0.002)


def load(client: SocketEngineClient, name: str, path: str = "", *, replaces: bool = False) -> None:
    client.load_adapter(name, path or name, replaces=replaces, timeout=WAIT_S)


def test_every_worker_learns_of_a_loaded_adapter(stack: Stack) -> None:
    first, second = stack.connect(), stack.connect()
    load(first, "poet")
    assert first.adapters() == {"poet": AdapterCard("poet", "poet")}
    wait_for(lambda: "poet" in second.adapters(), "the news")
    third = stack.connect()
    third.refresh_adapters(WAIT_S)
    assert "poet" in third.adapters()
    first.unload_adapter("poet", WAIT_S)
    assert first.adapters() == {}
    wait_for(lambda: not second.adapters(), "the news")


def test_matrices_reach_the_engine_as_they_are_stored(stack: Stack, root: Path) -> None:
    load(stack.connect(), "poet")
    stored = random_adapter(TARGETS, seed=0)
    assert [each[1] for each in stack.engine.lora_targets] == [Q, V]
    for lora_id, target, scale, a, b in stack.engine.lora_targets:
        assert (lora_id, scale) == (1, 6 / 4)
        for side, (dtype, rows, cols, data) in zip("AB", (a, b), strict=True):
            values = stored[f"base_model.model.{target}.lora_{side}.weight"]
            assert (dtype, rows, cols) == ("float32", *values.shape)
            assert bytes(data) == values.tobytes()


def test_rows_of_q_and_k_follow_the_base_models_order(root: Path) -> None:
    engine = _Recorder()
    base = BaseModel(TARGETS, max_rank=8, turned_head_dim=6)
    Adapters(engine, base).load(LoraModule("poet", str(root / "poet")))
    stored = random_adapter(TARGETS, seed=0)
    b = stored[f"base_model.model.{Q}.lora_B.weight"]
    turned = b.reshape(2, 2, 3, 4).swapaxes(1, 2).reshape(12, 4)
    assert np.array_equal(engine.b[Q], turned)
    assert np.array_equal(engine.b[V], stored[f"base_model.model.{V}.lora_B.weight"])
    assert engine.closed == []


def test_an_adapter_without_a_name_takes_no_place(root: Path) -> None:
    engine = _Recorder()
    with pytest.raises(InvalidRequestError, match="printable"):
        Adapters(engine, BASE).load(LoraModule("", str(root / "poet")))
    assert engine.b == {}


def test_an_adapter_is_unloaded_once(root: Path) -> None:
    engine = _Recorder()
    adapters = Adapters(engine, BASE)
    adapters.load(LoraModule("poet", str(root / "poet")))
    adapters._lock = _Meddling(lambda: adapters.unload("poet"))  # type: ignore[assignment]
    adapters.unload("poet")
    assert engine.closed == [1]
    assert adapters.cards() == []


class _Meddling:
    """A lock after whose first use somebody else does something."""

    def __init__(self, meddle: Callable[[], None]) -> None:
        self._meddle: Callable[[], None] | None = meddle

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_error: object) -> None:
        meddle, self._meddle = self._meddle, None
        if meddle is not None:
            with contextlib.suppress(UnknownModelError):
                meddle()


class _Recorder:
    def __init__(self) -> None:
        self.b: dict[str, np.ndarray] = {}
        self.closed: list[int] = []

    def begin_lora(self) -> int:
        return 1

    def load_lora(self, lora_id: int, target: str, scale: float, a: object, b: tuple) -> None:
        _, rows, cols, data = b
        self.b[target] = np.frombuffer(data, np.float32).reshape(rows, cols)

    def open_lora(self, lora_id: int) -> None:
        pass

    def close_lora(self, lora_id: int) -> None:
        self.closed.append(lora_id)


def test_requests_go_to_their_adapter(stack: Stack) -> None:
    client = stack.connect()
    load(client, "poet")
    load(client, "painter")
    for name in ("painter", "", "poet"):
        assert tokens_of(client.submit([1], params(2), adapter=name)) == [2, 3]
    assert list(stack.engine.lora_ids.values()) == [2, 0, 1]
    with pytest.raises(UnknownModelError):
        tokens_of(client.submit([1], params(2), adapter="third"))


def test_unloading_leaves_running_requests_alone(stack: Stack) -> None:
    client = stack.connect()
    load(client, "poet")
    stream = client.submit([1], params(50), adapter="poet")
    assert stream.get(WAIT_S) is not None
    client.unload_adapter("poet", WAIT_S)
    with pytest.raises(UnknownModelError):
        tokens_of(client.submit([1], params(2), adapter="poet"))
    assert tokens_of(stream)[-1] == 51
    with pytest.raises(UnknownModelError):
        client.unload_adapter("poet", WAIT_S)


def test_replacing_takes_the_name_and_frees_the_old(stack: Stack) -> None:
    client = stack.connect()
    load(client, "poet")
    with pytest.raises(InvalidRequestError, match="taken"):
        load(client, "poet", "painter")
    load(client, "poet", "painter", replaces=True)
    assert client.adapters()["poet"].root == "painter"
    assert stack.engine.open_loras == {2}


def test_streams_go_on_while_an_adapter_loads(stack: Stack) -> None:
    client = stack.connect()
    stack.engine.hold_loras = threading.Event()
    loading = threading.Thread(target=load, args=(client, "poet"))
    loading.start()
    assert tokens_of(client.submit([1], params(20))) == list(range(2, 22))
    assert client.adapters() == {}
    stack.engine.hold_loras.set()
    loading.join(WAIT_S)
    assert "poet" in client.adapters()


def test_what_cannot_be_loaded_says_why(stack: Stack, root: Path) -> None:
    client = stack.connect()
    write_adapter(root / "other", random_adapter([(Q, 9, 12)]))
    write_adapter(root / "high", random_adapter(TARGETS, rank=9), rank=9)
    cases = [
        ("other", "other", "of another model"),
        ("high", "high", "above --max-lora-rank 8"),
        ("poet", "absent", "no directory below --lora-root"),
        ("base", "poet", "taken"),
        ("", "poet", "printable"),
    ]
    for name, path, cause in cases:
        with pytest.raises(InvalidRequestError, match=cause):
            load(client, name, path)
    load(client, "poet")
    load(client, "painter")
    with pytest.raises(InvalidRequestError, match="room for 2"):
        load(client, "third")


def test_only_directories_below_the_roots_are_read(stack: Stack, root: Path) -> None:
    client = stack.connect()
    outside = write_adapter(root.parent / "outside", random_adapter(TARGETS))
    (root / "link").symlink_to(outside)
    (root / "loop").symlink_to(root / "loop")
    above = str(root / ".." / "outside")
    for path in (str(outside), "../outside", "link", "loop", above, "poet\0"):
        with pytest.raises(InvalidRequestError, match="no directory"):
            load(client, "poet", path)
    load(client, "poet", str(root / "poet"))


def test_without_a_root_nothing_is_read(serve: Callable[..., Stack], root: Path) -> None:
    client = serve(base=BASE).connect()
    with pytest.raises(InvalidRequestError, match="has no --lora-root"):
        load(client, "poet", str(root / "poet"))


def test_without_room_the_flag_is_named(serve: Callable[..., Stack], root: Path) -> None:
    client = serve(roots=[str(root)]).connect()
    with pytest.raises(InvalidRequestError, match="--enable-lora"):
        load(client, "poet")
    with pytest.raises(UnknownModelError):
        tokens_of(client.submit([1], params(2), adapter="poet"))


def test_an_engine_that_goes_away_answers_who_waits(stack: Stack) -> None:
    client = stack.connect()
    stack.engine.hold_loras = threading.Event()
    errors: list[Exception] = []

    def wait() -> None:
        try:
            load(client, "poet")
        except EngineFaultError as error:
            errors.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    stack.stop()
    waiting.join(WAIT_S)
    stack.engine.hold_loras.set()
    assert len(errors) == 1
