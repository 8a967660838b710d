"""From what the user calls a model to files: a path, a named demo, or a repository on the hub.

Two steps, so that faults show before anything slow begins: `resolve_local` looks at the disk only,
`download` fetches what is not there. A model that is complete in a cache is used as it is, without
asking the network whether there is a newer one; `octavo pull` asks.
"""

from __future__ import annotations

import difflib
import reprlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from octavo.errors import ConfigError, ModelNotFoundError, OctavoError, UnsupportedModelError
from octavo.model.demo import DEMOS, Demo, fetch_demo, find_demo
from octavo.model.hub import HubModel, no_weights, parse_hub_id
from octavo.model.safetensors_file import INDEX_NAME, SINGLE_NAME, missing_shards

if TYPE_CHECKING:
    from collections.abc import Callable

    Progress = Callable[[int, int], None]

Kind = Literal["safetensors", "gguf"]


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """A model on this machine.

    Attributes:
        name: What the user called it.
        kind: How it is stored.
        path: The directory with config.json, or the .gguf file (the first shard of a split one).
    """

    name: str
    kind: Kind
    path: Path

    @property
    def directory(self) -> Path:
        """Where files beside the weights are looked for."""
        return self.path.parent if self.kind == "gguf" else self.path


@dataclass(frozen=True, slots=True)
class RemoteModel:
    """A model that has to be fetched first."""

    name: str
    source: HubModel | Demo
    cache_dir: Path
    load_format: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolveOptions:
    """Where and how to look for a model.

    Attributes:
        cache_dir: Where Octavo keeps demos.
        revision: Branch, tag or commit of a hub id; empty for the default one.
        download_dir: The hub's cache; empty for its library's default.
        load_format: auto, safetensors, gguf, or dummy (no weights are needed).
    """

    cache_dir: Path
    revision: str = ""
    download_dir: str = ""
    load_format: str = "auto"


def resolve_local(model: str, options: ResolveOptions) -> ResolvedModel | RemoteModel:
    """Find a model without using the network.

    Raises:
        ConfigError: No model is named.
        ModelNotFoundError: It is a path that leads nowhere, or no name at all.
        CheckpointError: A file of it is damaged.
        UnsupportedModelError: Its weights are of a kind that is not loaded.
    """
    remote = _remote(model, options)
    if remote is None:
        return inspect(model, Path(model).expanduser(), options.load_format)
    source = remote.source
    found = source.cached() if isinstance(source, HubModel) else find_demo(source, remote.cache_dir)
    if found is None:
        return remote
    try:
        return inspect(model, found, options.load_format)
    except OctavoError:
        # Incomplete, or for another load format: fetching completes it or tells why not.
        return remote


def download(remote: RemoteModel, progress: Progress) -> ResolvedModel:
    """Fetch a model; progress is called with bytes done and bytes in all, from any thread.

    Raises:
        ModelNotFoundError: With cause and remedy.
        CheckpointError: What came is damaged.
        UnsupportedModelError: It has no weights that are loaded.
    """
    source = remote.source
    if isinstance(source, HubModel):
        path = source.fetch(progress)
    else:
        path = fetch_demo(source, remote.cache_dir, progress)
    return inspect(remote.name, path, remote.load_format)


def resolve(model: str, options: ResolveOptions, progress: Progress) -> ResolvedModel:
    """resolve_local and, where needed, download."""
    found = resolve_local(model, options)
    return download(found, progress) if isinstance(found, RemoteModel) else found


def refresh(model: str, options: ResolveOptions, progress: Progress) -> ResolvedModel:
    """Like resolve, but asks the hub for a newer version of what is cached."""
    remote = _remote(model, options)
    if remote is None or isinstance(remote.source, Demo):
        return resolve(model, options, progress)
    return download(remote, progress)


def inspect(name: str, path: Path, load_format: str = "auto") -> ResolvedModel:
    """The model in a directory, or in a GGUF file.

    Raises:
        ModelNotFoundError: There is none, or files of it are missing.
        UnsupportedModelError: Its weights are of a kind that is not loaded.
    """
    try:
        if path.is_dir():
            return _inspect_directory(name, path, load_format)
        if not path.is_file():
            raise ModelNotFoundError(f"{path}: no such file or directory.")
    except OSError as error:
        raise ModelNotFoundError(f"{path}: {error.strerror}.") from None
    if path.suffix != ".gguf":
        raise UnsupportedModelError(
            f"{path}: not a GGUF file; for safetensors give the directory that holds config.json."
        )
    if load_format == "safetensors":
        raise ConfigError(f"--load-format safetensors does not fit {path}.")
    return ResolvedModel(name, "gguf", path)


def _remote(model: str, options: ResolveOptions) -> RemoteModel | None:
    """What a name stands for when it is no path."""
    if not model:
        raise ConfigError("No model is named.")
    if model in DEMOS:
        return RemoteModel(model, DEMOS[model], options.cache_dir, options.load_format)
    if "\0" in model:
        raise ModelNotFoundError("The model's name holds a NUL character.")
    if model.startswith(("/", ".", "~")) or _exists(model):
        return None
    parsed = parse_hub_id(model)
    if parsed is None:
        raise ModelNotFoundError(_unknown(model))
    if parsed[0].endswith(".gguf"):
        return None
    hub = HubModel(
        repo_id=parsed[0],
        file=parsed[1],
        revision=options.revision,
        download_dir=options.download_dir,
        with_weights=options.load_format != "dummy",
    )
    return RemoteModel(model, hub, options.cache_dir, options.load_format)


def _exists(model: str) -> bool:
    try:
        return Path(model).exists()
    except OSError:  # too long for a path
        return False


def _unknown(model: str) -> str:
    near = difflib.get_close_matches(model, DEMOS, 1)
    hint = f" Did you mean {near[0]}?" if near else ""
    return (
        f"{reprlib.repr(model)} is no file or directory here, no hub id (owner/name), and no demo "
        f"({', '.join(DEMOS)}).{hint}"
    )


def _inspect_directory(name: str, directory: Path, load_format: str) -> ResolvedModel:
    has_config = (directory / "config.json").is_file()
    if load_format == "dummy" and has_config:
        return ResolvedModel(name, "safetensors", directory)
    has_safetensors = (directory / SINGLE_NAME).is_file() or (directory / INDEX_NAME).is_file()
    if has_safetensors and load_format != "gguf":
        if not has_config:
            raise ModelNotFoundError(f"{directory}: config.json is missing.")
        if missing := missing_shards(directory):
            raise ModelNotFoundError(f"{directory}: missing: {', '.join(missing)}.")
        return ResolvedModel(name, "safetensors", directory)
    names = [path.name for path in directory.iterdir()]
    ggufs = sorted(each for each in names if each.endswith(".gguf"))
    firsts = [each for each in ggufs if "-of-" not in each or "-00001-of-" in each]
    if load_format == "safetensors" or not firsts:
        raise _no_weights(directory, names, load_format)
    if len(firsts) > 1:
        raise ModelNotFoundError(
            f"{directory}: several GGUF files; give the path of one: {', '.join(firsts)}."
        )
    return ResolvedModel(name, "gguf", directory / firsts[0])


def _no_weights(directory: Path, names: list[str], load_format: str) -> OctavoError:
    if not names:
        return ModelNotFoundError(f"{directory}: the directory is empty.")
    if load_format in {"safetensors", "gguf"}:
        return ModelNotFoundError(
            f"{directory}: no {load_format} file, which --load-format asks for."
        )
    if "config.json" in names or any(each.endswith((".bin", ".pt", ".pth")) for each in names):
        return UnsupportedModelError(f"{directory}: {no_weights(names)}")
    return ModelNotFoundError(f"{directory}: no model here: neither config.json nor a GGUF file.")
