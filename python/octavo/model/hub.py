"""Models on the Hugging Face Hub: what to fetch of a repository, and how failures are told."""

from __future__ import annotations

import glob
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from octavo.errors import ModelNotFoundError, UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    Progress = Callable[[int, int], None]

# owner/name, and after a colon a GGUF file of the repository or a part of its name.
_ID = re.compile(r"(?P<repo>[\w.-]{1,96}/[\w.-]{1,96})(?::(?P<file>[\w./-]+))?", re.ASCII)
_SHARD = re.compile(r"-(?P<index>\d{5})-of-(?P<count>\d{5})\.gguf")

# Beside weights: configuration, tokenizer and templates. Vocabularies (*.txt, *.model) serve
# tokenizers that have no tokenizer.json.
_SMALL_FILES = ("*.json", "*.jinja", "additional_chat_templates/*.jinja", "*.txt", "*.model")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")
_COMMIT = re.compile(r"[0-9a-f]{40}", re.ASCII)
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")


@dataclass(frozen=True, slots=True)
class HubModel:
    """A model of a repository.

    Attributes:
        repo_id: owner/name.
        file: A GGUF file, or a part of one's name; empty for safetensors or the only GGUF file.
        revision: Branch, tag or commit; empty for the default branch.
        download_dir: The cache; empty for the hub library's own.
        with_weights: False to fetch all but the weights.
        endpoint: The hub's address; None for the library's default.
    """

    repo_id: str
    file: str = ""
    revision: str = ""
    download_dir: str = ""
    with_weights: bool = True
    endpoint: str | None = None

    def cached(self) -> Path | None:
        """The directory or GGUF file in the cache; None where a fetch has work to do.

        The cache's documented layout is read directly: the library takes 0.3 s to import, in every
        process that asks.
        """
        from huggingface_hub import constants  # noqa: PLC0415 - for hub ids only

        cache = Path(self.download_dir or constants.HF_HUB_CACHE).expanduser()
        folder = cache / f"models--{self.repo_id.replace('/', '--')}"
        directory = folder / "snapshots" / self._commit(folder)
        if not self.file:
            complete = any((directory / name).is_file() for name in _TOKENIZERS)
            return directory if complete or list(directory.glob("*.gguf")) else None
        names = {path.relative_to(directory).as_posix() for path in directory.rglob("*.gguf")}
        matching = _matching(names, self.file)
        return directory / _first_shard(matching) if _is_one_file(matching) else None

    def _commit(self, folder: Path) -> str:
        """The commit that the revision stood for when it was last fetched."""
        revision = self.revision or "main"
        if _COMMIT.fullmatch(revision):
            return revision
        try:
            commit = (folder / "refs" / revision).read_text("ascii").strip()
        except (OSError, UnicodeDecodeError):
            return "none"
        return commit if _COMMIT.fullmatch(commit) else "none"

    def fetch(self, progress: Progress) -> Path:
        """Download what the cache lacks, going on where an interrupted download stopped.

        Returns:
            The directory, or the GGUF file (the first shard of a split one).

        Raises:
            ModelNotFoundError: With cause and remedy.
            UnsupportedModelError: The repository has no weights that Octavo reads.
        """
        from huggingface_hub import HfApi, snapshot_download  # noqa: PLC0415 - slow to import

        try:
            info = HfApi(endpoint=self.endpoint).model_info(
                self.repo_id, revision=self.revision or None, files_metadata=True
            )
            sizes = {each.rfilename: each.size or 0 for each in info.siblings or ()}
            names = self.choose(sizes)
            total = sum(sizes[name] for name in names)
            directory = snapshot_download(
                self.repo_id,
                revision=self.revision or None,
                cache_dir=self.download_dir or None,
                endpoint=self.endpoint,
                allow_patterns=[glob.escape(name) for name in names],
                tqdm_class=_progress_bar(lambda done: progress(min(done, total), total)),
            )
        except (ModelNotFoundError, UnsupportedModelError):
            raise
        except Exception as error:  # the library raises its HTTP client's errors too
            raise ModelNotFoundError(explain(self, error)) from error
        ggufs = [name for name in names if name.endswith(".gguf")]
        return Path(directory) / _first_shard(ggufs) if ggufs else Path(directory)

    def choose(self, names: Collection[str]) -> list[str]:
        """The files to fetch out of those that a repository has.

        Raises:
            ModelNotFoundError: The GGUF file is absent, or several could be meant.
            UnsupportedModelError: There are no weights that Octavo reads.
        """
        small = [name for name in names if _is_small(name)]
        if not self.with_weights:
            return small
        if not self.file and (weights := _safetensors(names)):
            return small + weights
        ggufs = _matching(names, self.file)
        sets = {_SHARD.sub("", name) for name in ggufs}
        if len(sets) == 1:
            return small + ggufs
        if not self.file and not ggufs:
            raise UnsupportedModelError(f"{self.repo_id}: {no_weights(names)}")
        offered = sorted(ggufs or _matching(names, ""))
        cause = "names several GGUF files" if ggufs else "has no such GGUF file"
        raise ModelNotFoundError(
            f"{self.repo_id}{':' if self.file else ''}{self.file} {cause}; choose one: "
            + ", ".join(f"{self.repo_id}:{name}" for name in offered if not _is_later_shard(name))
        )


def parse_hub_id(model: str) -> tuple[str, str] | None:
    """Repository and file of `owner/name` or `owner/name:file`; None when it is neither."""
    match = _ID.fullmatch(model)
    return (match["repo"], match["file"] or "") if match else None


def no_weights(names: Collection[str]) -> str:
    """Why a set of files cannot be loaded, and what to do."""
    pickles = sorted(name for name in names if name.endswith(_PICKLES))
    if pickles:
        return (
            f"the weights are pickle files ({', '.join(pickles[:3])}), which are never loaded "
            "because they can run code: convert them with transformers' "
            "save_pretrained(…, safe_serialization=True), or use a GGUF file."
        )
    if any(PurePosixPath(name).name == "adapter_config.json" for name in names):
        return "this is an adapter: merge it into its base model first."
    return "there are neither safetensors nor GGUF files."


def explain(model: HubModel, error: Exception) -> str:
    """Cause and remedy of a failed fetch."""
    from huggingface_hub import errors  # noqa: PLC0415 - slow to import

    where = model.repo_id + (f" at revision {model.revision}" if model.revision else "")
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.GatedRepoError) or status == 403:
        return (
            f"{where} is gated: accept its terms on the hub, then set HF_TOKEN or run "
            "`hf auth login`."
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{model.repo_id} has no revision {model.revision or 'main'}: check --revision."
    if isinstance(error, errors.RepositoryNotFoundError) or status in {401, 404}:
        return (
            f"{where} does not exist on the hub, or is private: check the name, and for a private "
            "one set HF_TOKEN or run `hf auth login`."
        )
    cause = str(error).strip().split("\n", 1)[0] or type(error).__name__
    if isinstance(error, errors.OfflineModeIsEnabled | errors.LocalEntryNotFoundError):
        return (
            f"{where} is not in the cache and the hub cannot be reached ({cause}): check the "
            "network and HF_HUB_OFFLINE, or give the path of a directory."
        )
    return (
        f"{where} could not be fetched ({type(error).__name__}: {cause}): check the network, "
        "HF_ENDPOINT and the free disk space; a download goes on where it stopped."
    )


def _is_small(name: str) -> bool:
    path = PurePosixPath(name)
    if len(path.parts) > 1 and path.parts[0] != "additional_chat_templates":
        return False
    return any(path.match(pattern) for pattern in _SMALL_FILES)


def _safetensors(names: Collection[str]) -> list[str]:
    """The weights that transformers would load: not adapters, and not the consolidated copy."""
    return [
        name
        for name in names
        if re.fullmatch(r"(model|pytorch_model)[^/]*\.safetensors", name, re.ASCII)
    ]


def _matching(names: Collection[str], part: str) -> list[str]:
    """GGUF files of that name, else those whose name contains it."""
    ggufs = [name for name in names if name.endswith(".gguf")]
    exact = [name for name in ggufs if name == part]
    if exact and not _SHARD.search(part):
        return exact
    stem = _SHARD.sub("", part)
    return sorted(name for name in ggufs if stem.lower() in name.lower())


def _is_one_file(names: Collection[str]) -> bool:
    """Whether these are one GGUF file, or every shard of one."""
    if len({_SHARD.sub("", name) for name in names}) != 1:
        return False
    shard = _SHARD.search(min(names))
    return len(names) == (int(shard["count"]) if shard else 1)


def _first_shard(names: Collection[str]) -> str:
    return min(names)


def _is_later_shard(name: str) -> bool:
    match = _SHARD.search(name)
    return match is not None and int(match["index"]) != 1


def _progress_bar(report: Callable[[int], None]) -> type[Any]:
    """A class for the library's `tqdm_class` that counts bytes and draws nothing."""
    from huggingface_hub.utils.tqdm import tqdm  # noqa: PLC0415 - slow to import

    done: dict[int, int] = {}

    class ByteCounter(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self._counts_bytes = kwargs.get("unit") == "B"
            self._bytes = int(kwargs.get("initial") or 0)
            kwargs["disable"] = True
            super().__init__(*args, **kwargs)  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> None:
            if not self._counts_bytes:
                return
            self._bytes += int(n or 0)
            # Some versions count the same bytes twice, as received and as written.
            done[id(self)] = self._bytes
            report(max(done.values()))

    return ByteCounter
