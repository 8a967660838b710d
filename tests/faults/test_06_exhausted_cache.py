"""Fault 6: the KV cache is too small for all; each still says what it says alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from faults.wire import figures, in_threads

if TYPE_CHECKING:
    from e2e.serving import Launcher, Server

NUM_REQUESTS = 12


def fields(index: int) -> dict[str, object]:
    sampling = {"temperature": 0} if index % 2 else {"temperature": 1.0, "seed": index}
    return {"prompt": [5 + index] * 20, "max_tokens": 150, "ignore_eos": True, **sampling}


def text(server: Server, index: int) -> str:
    answer = server.complete(**fields(index))
    assert answer.status == 200, answer.text
    return str(answer.json["choices"][0]["text"])


def test_preempted_requests_say_what_they_say_alone(start: Launcher) -> None:
    # 320 positions for requests of 170 each.
    server = start("--num-gpu-blocks-override", "20", "--max-model-len", "256").wait_ready()
    alone = [text(server, index) for index in range(NUM_REQUESTS)]
    assert server.metric("num_preemptions_total") == 0
    together = [""] * NUM_REQUESTS

    def run(index: int) -> None:
        together[index] = text(server, index)

    in_threads(NUM_REQUESTS, run)
    assert together == alone
    assert server.metric("num_preemptions_total") > 0
    assert server.metric("kv_cache_free_blocks") == 20
    figures(6, preemptions=server.metric("num_preemptions_total"), same=NUM_REQUESTS)
