"""`octavo serve OWNER/NAME` against a hub on this machine."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from e2e.serving import Launcher, Server, wait_for
from e2e.tiny_model import CONFIG
from model.hub_server import HubServer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

REPO = "octavo-test/tiny"
PADDING_BYTES = 48 << 20  # so that the download takes a while


def tensors() -> dict[str, np.ndarray[Any, Any]]:
    hidden, kv, mlp = CONFIG["hidden_size"], 32, CONFIG["intermediate_size"]
    shapes = {"model.embed_tokens.weight": (CONFIG["vocab_size"], hidden)}
    shapes["model.norm.weight"] = (hidden,)
    for i in range(CONFIG["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        shapes |= {
            f"{layer}self_attn.q_proj.weight": (hidden, hidden),
            f"{layer}self_attn.k_proj.weight": (kv, hidden),
            f"{layer}self_attn.v_proj.weight": (kv, hidden),
            f"{layer}self_attn.o_proj.weight": (hidden, hidden),
            f"{layer}mlp.gate_proj.weight": (mlp, hidden),
            f"{layer}mlp.up_proj.weight": (mlp, hidden),
            f"{layer}mlp.down_proj.weight": (hidden, mlp),
            f"{layer}input_layernorm.weight": (hidden,),
            f"{layer}post_attention_layernorm.weight": (hidden,),
        }
    random = np.random.default_rng(0)
    return {n: (random.standard_normal(s) / 8).astype(np.float32) for n, s in shapes.items()}


@pytest.fixture(scope="module")
def files(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    padding = np.zeros(PADDING_BYTES // 4, np.float32)
    save_file({**tensors(), "unused.padding": padding}, path)
    found = {file.name: file.read_bytes() for file in tiny_model.iterdir()}
    return found | {path.name: path.read_bytes()}


@pytest.fixture
def hub(files: dict[str, bytes]) -> Iterator[HubServer]:
    with HubServer(REPO, dict(files)) as hub:
        yield hub


class Home:
    """A user's caches, and how servers of this user are started."""

    def __init__(self, start: Launcher, directory: Path) -> None:
        self._start = start
        self.environ = {
            "HF_HOME": str(directory / "hf"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "OCTAVO_LOAD_FORMAT": "auto",
        }

    def serve(self, hub: HubServer, *flags: str, **environ: str) -> Server:
        environ = {**self.environ, "HF_ENDPOINT": hub.endpoint, **environ}
        return self._start(*flags, model=REPO, **environ)


@pytest.fixture
def home(start: Launcher, tmp_path: Path) -> Home:
    return Home(start, tmp_path / "home")


def text_of(server: Server) -> str:
    answer = server.complete(max_tokens=6)
    return str(answer.json["choices"][0]["text"])


def test_a_hub_id_is_downloaded_with_bytes_told_and_then_served(hub: HubServer, home: Home) -> None:
    server = home.serve(hub)
    server.wait_listening()
    told: list[dict[str, Any]] = []

    def is_ready() -> bool:
        answer = server.get("/health")
        if answer.status == 503 and answer.json["phase"] == "downloading":
            told.append(answer.json)
        return answer.status == 200

    wait_for(is_ready, "readiness")
    with_bytes = [body for body in told if "bytes_total" in body]
    assert with_bytes
    assert all(body["bytes_done"] <= body["bytes_total"] for body in with_bytes)
    assert all(body["bytes_per_s"] >= 0 for body in with_bytes)
    assert any(body.get("remaining_s", -1) >= 0 for body in with_bytes)
    done = [body["bytes_done"] for body in with_bytes]
    assert done == sorted(done)
    assert server.get("/v1/models").json["data"][0]["id"] == REPO
    assert text_of(server)


def test_a_second_start_needs_no_hub(hub: HubServer, home: Home) -> None:
    first = home.serve(hub).wait_ready()
    text = text_of(first)
    assert first.stop() == 0
    asked = len(hub.requests)
    offline = home.serve(hub, HF_HUB_OFFLINE="1").wait_ready()
    assert text_of(offline) == text
    assert len(hub.requests) == asked


def test_a_download_that_was_cut_goes_on_where_it_stopped(hub: HubServer, home: Home) -> None:
    hub.cut_after = PADDING_BYTES // 2
    server = home.serve(hub).wait_ready(120)
    assert text_of(server)
    resumed = [r for _, path, r in hub.requests if path.endswith("model.safetensors") and r]
    assert resumed, "nothing was resumed"


@pytest.mark.parametrize(
    ("refusal", "words"),
    [((401, "GatedRepo"), ("HF_TOKEN",)), ((404, "RepoNotFound"), (REPO,))],
    ids=["gated", "not found"],
)
def test_a_refusal_ends_with_3_and_a_remedy(
    hub: HubServer, home: Home, refusal: tuple[int, str], words: tuple[str, ...]
) -> None:
    hub.refuse = refusal
    server = home.serve(hub)
    assert server.wait() == 3, server.log()
    assert all(word in server.last_line() for word in (*words, REPO))
    assert "Traceback" not in server.log()


def test_the_card_of_a_downloaded_model_is_json(hub: HubServer, home: Home) -> None:
    server = home.serve(hub, "--served-model-name", "tiny").wait_ready()
    card = json.loads(server.get("/v1/models/tiny").text)
    assert (card["id"], card["max_model_len"]) == ("tiny", CONFIG["max_position_embeddings"])
