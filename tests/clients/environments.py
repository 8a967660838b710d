"""Where each client is installed, and which versions ran.

OCTAVO_TEST_CLIENTS says what must be there: "own" the packages of the `clients` extra, "all" also
the environments that `tests/run.sh clients` makes. What must be there and is not fails the test;
anything else that is missing skips it and says so.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

import pytest

HERE = Path(__file__).parent
REQUIRED = os.environ.get("OCTAVO_TEST_CLIENTS", "")
ENVIRONMENTS = Path(os.environ.get("OCTAVO_CLIENT_ENVIRONMENTS", "build/clients")).resolve()
SCRIPT_S = 280

versions: dict[str, str] = {}


def package(module: str, distribution: str = "") -> Any:
    """A client of this environment."""
    try:
        found = importlib.import_module(module)
    except ImportError:
        require(f"{module} is not installed: pip install '.[clients,otel]'")
    name = distribution or module
    versions[name] = version(name)
    return found


def program(environment: str, name: str) -> Path:
    """A program of another environment, made by `tests/run.sh clients`."""
    found = ENVIRONMENTS / environment / name
    if not found.exists():
        require(f"{found} is not there: tests/run.sh clients makes it", only="all")
    return found


def run(*words: object, cwd: Path | None = None, **environ: str) -> str:
    """The standard output of a client."""
    done = subprocess.run(
        [str(word) for word in words],
        capture_output=True,
        text=True,
        timeout=SCRIPT_S,
        check=False,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": "", **environ},
    )
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def run_script(environment: str, script: str, url: str, key: str) -> dict[str, Any]:
    """What a script of tests/clients/scripts says, in the Python of an environment; "" is ours."""
    python = program(environment, "bin/python") if environment else sys.executable
    said = run(python, HERE / "scripts" / script, url, key, OPENAI_API_KEY=key)
    answer = json.loads(said.splitlines()[-1])
    for name, found in answer.pop("versions").items():
        versions.setdefault(name, found)  # of a package in several environments, ours is told
    return dict(answer)


def require(reason: str, *, only: str = "own") -> NoReturn:
    """Fail where the thing must be there, skip elsewhere.

    Args:
        reason: What is missing, and how it gets there.
        only: "own" for what the extras install, "all" for what else `tests/run.sh clients` needs.
    """
    if REQUIRED in (only, "all"):
        pytest.fail(reason)
    pytest.skip(reason, allow_module_level=True)
