"""Downloads from a hub of our own, with the faults that the real one has."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from model.checkpoints import CONFIG, llama_tensors, safetensors_bytes
from model.hub_server import COMMIT, HubServer
from octavo.errors import ModelNotFoundError, UnsupportedModelError
from octavo.model.hub import HubModel, parse_hub_id

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")

REPO = "someone/tiny"
FILES = {
    "config.json": json.dumps(CONFIG).encode(),
    "model.safetensors": safetensors_bytes(llama_tensors()),
    "tokenizer.json": b"{}",
    "README.md": b"not needed",
    "pytorch_model.bin": b"never",
    "original/params.json": b"{}",
    "consolidated.safetensors": b"a copy",
    "chat_template.jinja": b"{{ messages }}",
}
FETCHED = {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"}


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer(REPO, dict(FILES)) as server:
        yield server


def model(hub: HubServer, directory: Path, **fields: str | bool) -> HubModel:
    return HubModel(REPO, download_dir=str(directory), endpoint=hub.endpoint, **fields)


def ignore(_done: int, _total: int) -> None:
    pass


def test_fetches_what_is_needed_and_counts_bytes(hub: HubServer, tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    path = model(hub, tmp_path).fetch(lambda *step: steps.append(step))
    assert {p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file()} == FETCHED
    for name in FETCHED:
        assert (path / name).read_bytes() == FILES[name]
    total = sum(len(FILES[name]) for name in FETCHED)
    assert steps[-1] == (total, total)
    assert all(done <= total for done, _ in steps)
    assert [done for done, _ in steps] == sorted(done for done, _ in steps)


def test_what_is_cached_needs_no_network(hub: HubServer, tmp_path: Path) -> None:
    assert model(hub, tmp_path).cached() is None
    path = model(hub, tmp_path).fetch(ignore)
    hub.requests.clear()
    assert model(hub, tmp_path).cached() == path
    assert model(hub, tmp_path, revision=COMMIT).cached() == path
    assert model(hub, tmp_path, revision="other").cached() is None
    assert hub.requests == []


def test_what_lacks_its_tokenizer_is_not_whole(hub: HubServer, tmp_path: Path) -> None:
    path = model(hub, tmp_path).fetch(ignore)
    (path / "tokenizer.json").unlink()
    assert model(hub, tmp_path).cached() is None
    assert model(hub, tmp_path).fetch(ignore) == path
    assert (path / "tokenizer.json").is_file()


def test_a_damaged_cache_is_no_cache(hub: HubServer, tmp_path: Path) -> None:
    model(hub, tmp_path).fetch(ignore)
    (ref,) = tmp_path.glob("models--*/refs/main")
    for content in (b"../../..", b"", b"\xff"):
        ref.write_bytes(content)
        assert model(hub, tmp_path).cached() is None


def test_looking_at_the_cache_is_cheap(tmp_path: Path) -> None:
    code = (
        "import sys; from octavo.model.hub import HubModel;"
        f"HubModel('a/b', download_dir={str(tmp_path)!r}).cached();"
        "assert 'huggingface_hub.hf_api' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_interrupted_download_goes_on(hub: HubServer, tmp_path: Path) -> None:
    content = b"x" + bytes(24 << 20)  # the library keeps what came in pieces of 10 MiB
    hub.files["model.safetensors"] = content
    hub.cut_after = 21 << 20
    path = model(hub, tmp_path).fetch(ignore)
    assert [asked for _, _, asked in hub.requests if asked] == [f"bytes={20 << 20}-"]
    assert (path / "model.safetensors").read_bytes() == content


def test_without_weights(hub: HubServer, tmp_path: Path) -> None:
    path = model(hub, tmp_path, with_weights=False).fetch(ignore)
    assert (path / "config.json").is_file()
    assert not (path / "model.safetensors").exists()


def test_a_gguf_file_of_a_repository(hub: HubServer, tmp_path: Path) -> None:
    hub.files = {"tiny-Q4_0.gguf": b"four", "tiny-Q8_0.gguf": b"eight", "README.md": b""}
    assert model(hub, tmp_path, file="tiny-Q8_0.gguf").fetch(ignore).read_bytes() == b"eight"
    assert model(hub, tmp_path, file="q4_0").fetch(ignore).read_bytes() == b"four"
    cached = model(hub, tmp_path, file="q4_0").cached()
    assert cached is not None
    assert cached.name == "tiny-Q4_0.gguf"
    assert model(hub, tmp_path, file="Q5").cached() is None
    assert model(hub, tmp_path, file="tiny").cached() is None


def test_a_split_gguf_file_is_cached_when_whole(hub: HubServer, tmp_path: Path) -> None:
    names = [f"m-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    hub.files = {name: name.encode() for name in names}
    path = model(hub, tmp_path, file="m").fetch(ignore)
    assert path.name == names[0]
    assert model(hub, tmp_path, file=names[0]).cached() == path
    path.with_name(names[1]).unlink()
    assert model(hub, tmp_path, file=names[0]).cached() is None


@pytest.mark.parametrize(
    ("refuse", "cause"),
    [
        ((401, "RepoNotFound"), "does not exist on the hub, or is private.*HF_TOKEN"),
        ((404, "RepoNotFound"), "does not exist on the hub, or is private"),
        ((404, "RevisionNotFound"), "has no revision dev: check --revision"),
        ((403, "GatedRepo"), "is gated: accept its terms"),
        ((401, "GatedRepo"), "is gated: accept its terms"),
        ((403, ""), "is gated: accept its terms"),
    ],
)
def test_refusals_have_cause_and_remedy(
    hub: HubServer, tmp_path: Path, refuse: tuple[int, str], cause: str
) -> None:
    hub.refuse = refuse
    with pytest.raises(ModelNotFoundError, match=cause) as caught:
        model(hub, tmp_path, revision="dev").fetch(ignore)
    assert REPO in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unreachable_hub(tmp_path: Path) -> None:
    with HubServer(REPO, {}) as hub:
        gone = model(hub, tmp_path)
    with pytest.raises(ModelNotFoundError, match=f"{REPO} could not be fetched.*network"):
        gone.fetch(ignore)


@pytest.mark.parametrize(
    ("names", "file", "chosen"),
    [
        (["config.json", "model.safetensors"], "", ["config.json", "model.safetensors"]),
        (["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
          "model.safetensors.index.json"], "",
         ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
          "model.safetensors.index.json"]),
        (["adapter_model.safetensors", "m.gguf"], "", ["m.gguf"]),
        (["model.safetensors", "m.gguf"], "m.gguf", ["m.gguf"]),
        (["a-Q4_K_M.gguf", "a-Q4_K_S.gguf"], "Q4_K_M", ["a-Q4_K_M.gguf"]),
        (["b-00001-of-00002.gguf", "b-00002-of-00002.gguf"], "b-00001-of-00002.gguf",
         ["b-00001-of-00002.gguf", "b-00002-of-00002.gguf"]),
        (["b-00001-of-00002.gguf", "b-00002-of-00002.gguf"], "",
         ["b-00001-of-00002.gguf", "b-00002-of-00002.gguf"]),
        (["sub/c.gguf", "c.gguf"], "sub/c.gguf", ["sub/c.gguf"]),
    ],
)  # fmt: skip
def test_chooses_files(names: list[str], file: str, chosen: list[str]) -> None:
    assert sorted(HubModel(REPO, file).choose(names)) == chosen


@pytest.mark.parametrize(
    ("names", "file", "cause"),
    [
        (["a.gguf", "b.gguf"], "", f"several GGUF files; choose one: {REPO}:a.gguf, {REPO}:b.gguf"),
        (["a.gguf"], "x", f"{REPO}:x has no such GGUF file; choose one: {REPO}:a.gguf"),
        (["a-Q4.gguf", "b-Q4.gguf"], "Q4", "several"),
    ],
)
def test_an_unclear_choice_lists_what_there_is(names: list[str], file: str, cause: str) -> None:
    with pytest.raises(ModelNotFoundError, match=cause):
        HubModel(REPO, file).choose(names)


@pytest.mark.parametrize(
    ("names", "cause"),
    [
        (["config.json", "pytorch_model.bin"], "pickle files .pytorch_model.bin.*convert"),
        (["config.json"], "neither safetensors nor GGUF"),
        (["adapter_config.json", "adapter_model.safetensors"], "adapter: merge it"),
    ],
)
def test_names_why_there_are_no_weights(names: list[str], cause: str) -> None:
    with pytest.raises(UnsupportedModelError, match=cause):
        HubModel(REPO).choose(names)


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("a/b", ("a/b", "")),
        ("a-1/B_2.5", ("a-1/B_2.5", "")),
        ("a/b:q4_0", ("a/b", "q4_0")),
        ("a/b:d/f.gguf", ("a/b", "d/f.gguf")),
        ("a", None), ("a/b/c", None), ("a b/c", None), ("a/é", None), ("", None), ("a/b:", None),
        ("a" * 97 + "/b", None),
    ],
)  # fmt: skip
def test_hub_ids(text: str, parsed: tuple[str, str] | None) -> None:
    assert parse_hub_id(text) == parsed
