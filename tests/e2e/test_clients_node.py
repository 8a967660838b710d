"""openai-node against the real server. Needs node, and NODE_PATH naming a folder with openai."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from live_server import live_server

NODE = shutil.which("node")
PACKAGE = Path(os.environ.get("NODE_PATH", "/nowhere")) / "openai"
ANSWER = "The capital of France is Paris."


@pytest.mark.skipif(NODE is None or not PACKAGE.is_dir(), reason="needs node and openai-node")
def test_openai_node(tmp_path: Path) -> None:
    # import looks for packages beside the script, not in NODE_PATH
    (tmp_path / "node_modules").symlink_to(PACKAGE.parent)
    script = shutil.copy(Path(__file__).with_name("openai_node.mjs"), tmp_path)
    with live_server() as server:
        done = subprocess.run(
            [NODE, script, server.url], capture_output=True, text=True, timeout=120, check=False
        )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "answer": ANSWER,
        "tokens": 8,
        "streamed": ANSWER,
        "streamedTokens": 8,
        "response": ANSWER,
        "error": [404, "model_not_found"],
    }
