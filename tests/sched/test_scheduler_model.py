"""A model check of the scheduler: any order of events keeps its promises.

The machine drives the C++ scheduler with a model whose every token is a hash of all tokens before
it, read back through the block tables. After each event all counts are checked (in C++); at the
end everything is run to completion and compared with what each sequence gives when it runs alone.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

STOP, LENGTH, ABORT, ERROR = 1, 2, 3, 4
VOCAB_SIZE = 50
BLOCK_SIZE = 4


def load_extension() -> Any:
    build_dir = os.environ.get("OCTAVO_TEST_BUILD_DIR")
    if build_dir is None:
        pytest.skip(
            "OCTAVO_TEST_BUILD_DIR does not name a build with OCTAVO_BUILD_TESTS",
            allow_module_level=True,
        )
    found = sorted(Path(build_dir).rglob("_sched_testing*.so"))
    if not found:
        msg = f"no _sched_testing extension below {build_dir}: was pybind11 found by CMake?"
        raise FileNotFoundError(msg)
    spec = importlib.util.spec_from_file_location("_sched_testing", found[0])
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


sched_testing = load_extension()

# Few distinct beginnings, so that prefixes are often shared, and lengths around block boundaries.
prompts = st.builds(
    lambda start, length, end: [(start * 13 + i) % VOCAB_SIZE for i in range(length)] + end,
    st.integers(0, 2),
    st.integers(0, 24),
    st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=1, max_size=6),
)

requests = st.fixed_dictionaries(
    {
        "n": st.sampled_from([1, 1, 1, 2, 4]),
        "temperature": st.sampled_from([0.0, 1.0]),
        "max_tokens": st.integers(1, 40),
        "min_tokens": st.sampled_from([0, 0, 3]),
        "ignore_eos": st.booleans(),
        "stop_token_ids": st.lists(st.integers(0, VOCAB_SIZE - 1), max_size=2),
        "prompt_logprobs": st.sampled_from([-1, -1, -1, 0]),
        "bad_words": st.sampled_from([[], [], [], [[1, 2]]]),
        "priority": st.integers(-2, 2),
        "cache_salt": st.sampled_from([0, 0, 1]),
    }
)

option_sets = st.fixed_dictionaries(
    {
        # From "everything is preempted all the time" to "there is always room".
        "num_blocks": st.sampled_from([12, 16, 24, 200]),
        "max_num_seqs": st.sampled_from([1, 3, 8]),
        "enable_prefix_caching": st.booleans(),
        "enable_chunked_prefill": st.booleans(),
        "max_num_mixed_prefill_tokens": st.sampled_from([1, 3, 1000]),
        "mixed_step_multiple": st.sampled_from([1, 4]),
        "by_priority": st.booleans(),
        "max_steps_in_flight": st.sampled_from([1, 2]),
    }
)


class SchedulerMachine(RuleBasedStateMachine):
    @initialize(options=option_sets, budget=st.sampled_from([8, 11, 32]))
    def start(self, options: dict[str, Any], budget: int) -> None:
        self.by_priority = options["by_priority"]
        self.max_model_len = min(64, options["num_blocks"] * BLOCK_SIZE)
        chunked = options["enable_chunked_prefill"]
        self.simulation = sched_testing.Simulation(
            **options,
            block_size=BLOCK_SIZE,
            vocab_size=VOCAB_SIZE,
            max_model_len=64,
            max_num_batched_tokens=budget if chunked else self.max_model_len,
        )
        self.requests: dict[int, tuple[list[int], dict[str, Any]]] = {}
        self.aborted: set[int] = set()
        self.broken = False  # a step threw: its error is the one to report
        self.harmed = False  # some sequence was ended with an error on purpose
        self.oldest: int | None = None
        self.steps_as_oldest = 0

    # --- events ---

    @rule(prompt=prompts, fields=requests)
    def add(self, prompt: list[int], fields: dict[str, Any]) -> None:
        request_id = len(self.requests)
        fields["min_tokens"] = min(fields["min_tokens"], fields["max_tokens"])
        self.simulation.add(request_id, prompt, **fields)
        self.requests[request_id] = (prompt, fields)

    @rule(data=st.data())
    @precondition(lambda self: self.requests)
    def abort(self, data: st.DataObject) -> None:
        request_id = data.draw(st.sampled_from(sorted(self.requests)))
        if self.is_live(request_id):
            self.aborted.add(request_id)
        self.simulation.abort(request_id)
        assert not self.is_live(request_id)

    @rule(count=st.integers(1, 12))
    def step(self, count: int) -> None:
        for _ in range(count):
            self.step_once()

    @rule()
    def evict(self) -> None:
        """A long prompt of its own: it evicts what is cached, and may be preempted half-way."""
        self.add([len(self.requests) % VOCAB_SIZE] * (self.max_model_len - 1), {**PLAIN})

    @rule()
    def reset(self) -> None:
        self.simulation.reset_prefix_cache()

    @rule()
    @precondition(lambda self: not self.harmed)
    def harm_one(self) -> None:
        self.harmed = True
        self.simulation.spoil_next()

    @rule()
    @precondition(lambda self: not self.harmed)
    def fail_step(self) -> None:
        self.harmed = True
        self.simulation.fail_step()

    # --- promises ---

    @invariant()
    def every_live_sequence_waits_or_runs(self) -> None:
        if not hasattr(self, "simulation"):
            return
        stats = self.simulation.stats()
        live = sum(not self.is_finished(*name) for name in self.names())
        assert stats["num_waiting"] + stats["num_running"] == live
        if live == 0:
            assert stats["num_free_blocks"] == stats["num_blocks"]
            assert stats["num_waiting_requests"] == stats["num_waiting_tokens"] == 0

    def step_once(self) -> bool:
        self.broken = True
        made_progress = self.simulation.step()
        self.broken = False
        oldest = next((r for r in self.requests if self.is_live(r)), None)
        self.steps_as_oldest = self.steps_as_oldest + 1 if oldest == self.oldest else 0
        self.oldest = oldest
        if oldest is not None and not self.by_priority:
            prompt, fields = self.requests[oldest]
            # One sequence after the other, each token a step, the prompt a token at a time.
            assert self.steps_as_oldest <= fields["n"] * 2 * (len(prompt) + fields["max_tokens"])
        return made_progress

    def teardown(self) -> None:
        if not hasattr(self, "simulation") or self.broken:
            return
        bound = 2 * sum(f["n"] * (len(p) + f["max_tokens"]) for p, f in self.requests.values())
        while self.step_once():
            bound -= 1
            assert bound >= 0, "a request starves"
        self.every_live_sequence_waits_or_runs()
        for name in self.names():
            self.check_output(*name)

    def check_output(self, request_id: int, index: int) -> None:
        token_ids, reason, stop_token_id, positions = self.simulation.output(request_id, index)
        alone = self.simulation.alone(request_id, index)
        if reason in (STOP, LENGTH):
            assert (token_ids, reason, stop_token_id) == alone[:3]
        else:
            assert (reason == ABORT and request_id in self.aborted) or self.harmed
            assert token_ids == alone[0][: len(token_ids)]
        prompt, fields = self.requests[request_id]
        expected = list(range(len(prompt) - 1)) if fields["prompt_logprobs"] == 0 else []
        if index > 0:
            assert positions == []
        elif reason in (STOP, LENGTH):
            assert positions == expected
        else:
            assert positions == expected[: len(positions)]

    # --- the state of a sequence, as its outputs tell it ---

    def names(self) -> list[tuple[int, int]]:
        return [(r, i) for r, (_, fields) in self.requests.items() for i in range(fields["n"])]

    def is_finished(self, request_id: int, index: int) -> bool:
        if not self.simulation.has_output(request_id, index):
            return False
        return bool(self.simulation.output(request_id, index)[1])

    def is_live(self, request_id: int) -> bool:
        count = self.requests[request_id][1]["n"]
        return not all(self.is_finished(request_id, index) for index in range(count))


PLAIN = {"n": 1, "temperature": 0.0, "max_tokens": 1, "min_tokens": 0, "prompt_logprobs": 0}

TestSchedulerModel = SchedulerMachine.TestCase
TestSchedulerModel.settings = settings(
    max_examples=150,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


def test_the_machine_reaches_preemption_and_prefix_hits() -> None:
    """The tight sizes that the machine draws do cause what it is there to check."""
    simulation = sched_testing.Simulation(
        num_blocks=12, block_size=BLOCK_SIZE, vocab_size=VOCAB_SIZE, max_model_len=64
    )
    for request_id in range(6):
        simulation.add(request_id, list(range(9)), max_tokens=30, ignore_eos=True)
    while simulation.step():
        pass
    stats = simulation.stats()
    assert stats["num_preemptions"] > 0
    assert stats["num_prefix_hit_tokens"] > 0
