"""Putting an engine to sleep and waking it, through the real client, endpoint and supervisor."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from engine.stack import Stack, params, tokens_of, wait_for
from octavo.engine.sleep import Sleeper
from octavo.engine.status_page import ENGINE_ENDS, StatusPage
from octavo.errors import EngineFaultError, NotReadyError

if TYPE_CHECKING:
    from collections.abc import Callable


def test_level_1_lets_what_runs_finish(serve: Callable[..., Stack]) -> None:
    stack = serve(step_s=0.005)
    client = stack.connect()
    stream = client.submit([1], params(20))
    client.sleep(1, patience_s=60)
    assert stack.engine.stats()["is_asleep"]
    assert len(tokens_of(stream)) == 20
    state = client.state()
    assert (state.sleep_level, state.is_ready, state.is_alive) == (1, False, True)
    with pytest.raises(NotReadyError, match="asleep"):
        client.submit([1], params(1))
    client.wake_up()
    assert client.state().sleep_level == 0
    assert tokens_of(client.submit([1], params(2))) == [2, 3]


def test_impatience_ends_what_runs(serve: Callable[..., Stack]) -> None:
    client = serve(step_s=0.005).connect()
    stream = client.submit([1], params(1 << 20))
    client.sleep(1, patience_s=0)
    with pytest.raises(NotReadyError, match="put to sleep"):
        tokens_of(stream)


def test_an_engine_that_stays_awake_is_an_error(
    serve: Callable[..., Stack], monkeypatch: pytest.MonkeyPatch
) -> None:
    stack = serve()
    client = stack.connect()
    monkeypatch.setattr(stack.engine, "sleep", lambda aborts: None)
    monkeypatch.setattr("octavo.engine.sleep._ANSWER_S", 1.0)
    with pytest.raises(EngineFaultError, match="did not fall asleep"):
        client.sleep(1, patience_s=0)


def test_waking_waits_until_the_process_has_ended() -> None:
    page = StatusPage()
    page.begin_generation()
    page.enter("ready")
    page.set_engine_pid(1)
    page.set_sleep_level(ENGINE_ENDS)  # the supervisor has not seen it yet
    sleeper = Sleeper(page, lambda _message: None, lambda _timeout: {})
    waking = threading.Thread(target=sleeper.wake_up)
    waking.start()
    waking.join(0.2)
    assert (page.sleep_level, page.engine_phase) == (ENGINE_ENDS, "ready")
    page.set_engine_pid(0)
    wait_for(lambda: page.sleep_level == 0)
    page.enter("ready")
    waking.join(10)
    assert not waking.is_alive()


def test_every_worker_sleeps(serve: Callable[..., Stack]) -> None:
    stack = serve()
    one, other = stack.connect(), stack.connect()
    one.sleep(1, patience_s=1)
    with pytest.raises(NotReadyError, match="asleep"):
        other.submit([1], params(1))
    other.wake_up()
    assert tokens_of(one.submit([1], params(1))) == [2]


def test_a_wake_up_ends_a_sleep_that_waits(serve: Callable[..., Stack]) -> None:
    client = serve(step_s=0.005).connect()
    stream = client.submit([1], params(1 << 20))
    waiting = threading.Thread(target=client.sleep, args=(1, 60))
    waiting.start()
    wait_for(lambda: client.state().sleep_level)
    client.wake_up()
    waiting.join(10)
    assert not waiting.is_alive()
    assert client.state().sleep_level == 0
    stream.abort()
    assert tokens_of(client.submit([5], params(1))) == [6]


def test_without_memory_the_engine_sleeps_on(serve: Callable[..., Stack]) -> None:
    stack = serve()
    client = stack.connect()
    client.sleep(1, patience_s=1)
    stack.engine.restore_fails = True
    with pytest.raises(NotReadyError, match="no memory"):
        client.wake_up()
    assert client.state().sleep_level == 1
    stack.engine.restore_fails = False
    client.wake_up()
    assert client.state().sleep_level == 0


def test_an_awake_engine_need_not_wake(serve: Callable[..., Stack]) -> None:
    stack = serve()
    stack.connect().wake_up()
    assert stack.engine.stats()["num_wake_ups"] == 0
