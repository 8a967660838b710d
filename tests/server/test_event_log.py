"""The events of background responses: what is kept, and how they are read."""

from __future__ import annotations

import threading

import pytest

from octavo.server import event_log
from octavo.server.event_log import EventLog, EventRoom, EventsGoneError, LogReader
from octavo.server.sse import KEEP_ALIVE, named_event


def numbered(number: int, size: int = 0) -> bytes:
    return named_event("e", {"sequence_number": number, "text": "\n\n" + "x" * size})


def log_of(count: int, limit: int = 1 << 20) -> EventLog:
    log = EventLog(EventRoom(limit))
    log.extend(b"".join(map(numbered, range(count))))
    return log


def test_events_of_one_piece_are_numbered_one_by_one() -> None:
    log = log_of(5)
    log.extend(numbered(5))
    log.extend(b"")
    assert log.last == 5
    assert log.read(-1) == b"".join(map(numbered, range(6)))
    assert log.read(3) == numbered(4) + numbered(5)
    assert log.read(5) == log.read(500) == b""


def test_the_oldest_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_log, "MAX_LOG_BYTES", 3 * len(numbered(0)))
    log = log_of(10)
    assert log.num_bytes == 3 * len(numbered(0))
    assert log.read(6) == b"".join(map(numbered, (7, 8, 9)))
    for gone in (5, -1):
        with pytest.raises(EventsGoneError):
            log.read(gone)
        with pytest.raises(EventsGoneError):
            LogReader(log, gone)
    log.extend(numbered(10, size=1 << 16))  # one alone is always kept
    assert log.read(9) == numbered(10, size=1 << 16)


def test_all_logs_share_one_room() -> None:
    size = len(numbered(0))
    room = EventRoom(10 * size)
    first, second = EventLog(room), EventLog(room)
    for number in range(9):
        first.extend(numbered(number))
    for number in range(9):
        second.extend(numbered(number))
    assert room.used == 10 * size
    assert (first.num_bytes, second.num_bytes) == (9 * size, size)
    first.end()
    assert room.used == size
    second.end()
    assert room.used == 0
    assert first.read(-1) == b"".join(map(numbered, range(9)))


def test_a_reader_gets_all_there_is_and_all_that_comes() -> None:
    log = log_of(3)
    found: list[bytes] = []
    reader = threading.Thread(target=lambda: found.extend(LogReader(log, 0)))
    reader.start()
    for number in range(3, 100):
        log.extend(numbered(number))
    log.end()
    reader.join(20)
    assert b"".join(found) == b"".join(map(numbered, range(1, 100)))


def test_a_reader_that_is_closed_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    log = log_of(1)
    reader = LogReader(log, 0)
    found: list[bytes] = []
    thread = threading.Thread(target=lambda: found.extend(reader))
    thread.start()
    reader.close()
    thread.join(5)
    assert not thread.is_alive()
    assert found == []
    monkeypatch.setattr(event_log, "KEEP_ALIVE_S", 0.0)
    assert next(iter(LogReader(log, 0))) == KEEP_ALIVE


def test_a_reader_that_is_overtaken_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_log, "MAX_LOG_BYTES", 3 * len(numbered(0)))
    log = log_of(2)
    reader = LogReader(log, -1)
    steps = iter(reader)
    assert next(steps) == numbered(0) + numbered(1)
    log.extend(b"".join(map(numbered, range(2, 10))))
    with pytest.raises(EventsGoneError) as gone:
        next(steps)
    last = reader.fault(gone.value)
    assert last.startswith(b"event: error\n")
    assert b'"sequence_number":2,"code":"events_not_kept"' in last
