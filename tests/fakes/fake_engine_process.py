"""An engine process without a model: the real octavo.engine.process around a FakeEngine.

The variable FAKE_ENGINE holds what it is to do, as JSON: seconds of each phase ("phase_s"), of a
step ("step_s"), at which token of a prompt to lose the device ("lost_on_token"), and in which phase
to end how ("fail": [phase, what]): an exit code of an OctavoError, "hang", "eat" (all memory), or a
signal's name. "fail_generation" limits that to one generation. With a directory "gates" a phase
lasts until there is a file of its name in it.
"""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

from fake_core import MAX_MODEL_LEN, VOCAB_SIZE, FakeEngine

from octavo import errors
from octavo.engine.client import ModelInfo
from octavo.engine.process import Loaded, Process
from octavo.engine.status_page import PHASES, READY, StatusPage
from octavo.processes import ignore_ending_signals

if TYPE_CHECKING:
    from octavo.config import ServeConfig

LOADING = PHASES[PHASES.index("downloading") : READY]
BY_CODE = {
    3: errors.ModelNotFoundError("The model is not there: check its name."),
    4: errors.UnsupportedModelError("The model needs an architecture that is not supported."),
    5: errors.OutOfMemoryError("KV cache needs 41.2 GB and 23.0 GB are free: lower it."),
    70: errors.EngineError("The device failed."),
}


def fail(what: int | str) -> None:
    if isinstance(what, int):
        raise BY_CODE[what]
    if what == "hang":
        while True:
            time.sleep(1)
    if what == "eat":
        hoard = []
        while True:
            hoard.append(b"x" * (16 << 20))
    os.kill(os.getpid(), getattr(signal, what))


def build(config: ServeConfig, page: StatusPage) -> Loaded:
    plan = json.loads(os.environ.get("FAKE_ENGINE", "{}"))
    generation = page.read().generation
    phase, what = plan.get("fail", [None, None])
    if plan.get("fail_generation", generation) != generation:
        phase = None
    gates = Path(plan["gates"]) if "gates" in plan else None
    for each in LOADING:
        page.enter(each)
        if each == phase:
            fail(what)
        if each == plan.get("slow_phase", each):
            for tenth in range(10):
                page.advance(tenth / 10, tenth * 1000, 10_000)
                time.sleep(plan.get("phase_s", 0.0) / 10)
        while gates and not (gates / each).exists():
            time.sleep(0.01)
    engine = FakeEngine(plan.get("step_s", 0.01), lost_on_token=plan.get("lost_on_token"))
    engine.set_heartbeat(page.memory, page.HEARTBEAT_OFFSET)
    engine.start()
    return Loaded(engine, ModelInfo(VOCAB_SIZE, MAX_MODEL_LEN), lambda sampling: sampling)


if __name__ == "__main__":
    ignore_ending_signals()
    code = Process(build).run()
    os._exit(code)
