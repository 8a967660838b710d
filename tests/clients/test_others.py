"""Clients whose packages do not go with ours, each in an environment of its own.

`tests/run.sh clients` makes those environments from requirements/ and node/ and runs this.
"""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import pytest

from clients.conftest import KEY
from clients.environments import HERE, program, run, run_script, versions
from octavo.config import ServeConfig, resolve_options
from octavo.model.files import ModelFiles
from octavo.model.resolve import ResolvedModel, resolve_local

if TYPE_CHECKING:
    from pathlib import Path

    from e2e.live_server import LiveServer

ANSWER = "The capital of France is Paris."


def test_llama_index(server: LiveServer) -> None:
    assert run_script("frameworks", "llama_index_client.py", server.url, KEY) == {
        "answer": ANSWER,
        "streamed": ANSWER,
        "completed": " Paris.",
    }


def test_instructor(server: LiveServer) -> None:
    answers = run_script("frameworks", "instructor_client.py", server.url, KEY)["answers"]
    assert set(answers) == {"JSON_SCHEMA", "TOOLS"}
    for fields in answers.values():
        assert set(fields) == {"country", "city"}


def test_lm_eval(server: LiveServer) -> None:
    said = run_script("lm-eval", "lm_eval_client.py", server.url, KEY)
    (paris, is_greedy), (london, is_not), (five, _), (hello, _) = said["scored"]
    assert is_greedy
    assert not is_not
    assert 0 > paris > london
    assert five > london > hello
    assert said["rolling"][0] < -10
    assert said["generated"] == [" Paris"]
    assert said["said"] == [ANSWER]


def test_guidellm(server: LiveServer, tmp_path: Path) -> None:
    data, out = tmp_path / "prompts.jsonl", tmp_path / "report.json"
    prompts = [{"prompt": f"A story of {n} ships:", "output_tokens_count": 8} for n in range(4)]
    data.write_text("".join(json.dumps(each) + "\n" for each in prompts))
    run(
        program("guidellm", "bin/guidellm"), "run",
        "--backend", f"kind=openai_http,target={server.url},model=smollm2,api_key={KEY}",
        "--profile", "kind=concurrent,streams=2",
        "--constraint", "kind=max_requests,count=4",
        "--data", f"kind=json_file,path={data}",
        "--output", f"kind=json,path={out}",
        "--disable-console-interactive",
    )  # fmt: skip
    report = json.loads(out.read_text())
    versions["guidellm"] = report["metadata"]["guidellm_version"]
    [benchmark] = report["benchmarks"]
    assert benchmark["metrics"]["request_totals"] == {
        "successful": 4, "incomplete": 0, "errored": 0, "total": 4,
    }  # fmt: skip


def test_aiperf(server: LiveServer, tmp_path: Path, demo_tokenizer: Path) -> None:
    run(
        program("aiperf", "bin/aiperf"), "profile", "--model", "smollm2", "--url", server.url,
        "--api-key", KEY,
        "--endpoint-type", "chat", "--streaming", "--tokenizer", demo_tokenizer,
        "--request-count", 6, "--concurrency", 2, "--synthetic-input-tokens-mean", 40,
        "--output-tokens-mean", 8, "--ui", "none", "--workers-max", 1, "--artifact-dir", tmp_path,
        cwd=tmp_path,
    )  # fmt: skip
    report = json.loads((tmp_path / "profile_export_aiperf.json").read_text())
    versions["aiperf"] = report["aiperf_version"]
    assert report["request_count"]["avg"] == 6
    assert report["time_to_first_token"]["avg"] > 0
    assert not report.get("error_summary")


def test_openai_node(server: LiveServer, tmp_path: Path) -> None:
    modules = program("node", "node_modules")
    node = shutil.which("node")
    if node is None:
        pytest.fail("node_modules are there and node is not")
    # import looks for packages beside the script
    (tmp_path / "node_modules").symlink_to(modules)
    script = shutil.copy(HERE / "node" / "openai_node.mjs", tmp_path)
    versions["openai-node"] = json.loads((modules / "openai/package.json").read_text())["version"]
    assert json.loads(run(node, script, server.url, KEY)) == {
        "answer": ANSWER,
        "tokens": 8,
        "streamed": ANSWER,
        "streamedTokens": 8,
        "response": ANSWER,
        "error": [404, "model_not_found"],
    }


@pytest.fixture
def demo_tokenizer(tmp_path: Path) -> Path:
    """The demo's tokenizer as transformers reads it."""
    config = ServeConfig(model="smollm2")
    found = resolve_local(config.model, resolve_options(config))
    assert isinstance(found, ResolvedModel)
    directory = tmp_path / "tokenizer"
    directory.mkdir()
    tokenizer = ModelFiles(found).tokenizer("").token_bytes.tokenizer
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return directory
