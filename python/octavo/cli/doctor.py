"""`octavo doctor`: what on this machine matters to Octavo, with a remedy for what is wrong."""

from __future__ import annotations

import os
import platform
import resource
import shutil
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from octavo.config import cache_directory, runtime_directories
from octavo.options import parse_int
from octavo.version import __version__

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

DESCRIPTION = """Look at CPU, GPU, memory, limits, port, caches and libraries. Exit code 0: a server
can start here; 1: something prevents it."""
OK, WARNING, FAULT = "ok", "warning", "fault"
_WANTED_DESCRIPTORS = 4096  # connections, and as much again for what else is open
_WANTED_MEMORY_BYTES = 1 << 30
_WANTED_DISK_BYTES = 1 << 30
_LIBRARIES = ("falcon", "gevent", "gunicorn", "msgspec", "tokenizers", "huggingface-hub", "jinja2")


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        level: ok, warning or fault.
        subject: What was looked at.
        text: What was found, and the remedy where one is needed.
    """

    level: str
    subject: str
    text: str


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `doctor` to the command line."""
    parser = subparsers.add_parser(
        "doctor",
        help="look at this machine: CPU, GPU, limits, model cache",
        description=DESCRIPTION,
    )
    parser.add_argument("--port", default=8000, help="port to look at (default: 8000)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the findings; returns 1 if one is a fault.

    Raises:
        ConfigError: The port is no number.
    """
    from octavo.errors import ConfigError  # noqa: PLC0415 - for the rare case

    try:
        port = parse_int(arguments.port)
    except ValueError as error:
        raise ConfigError(f"--port: {error}.") from None
    findings = list(examine(port))
    for each in findings:
        sys.stdout.write(f"{each.level:<8} {each.subject:<12} {each.text}\n")
    return int(any(each.level == FAULT for each in findings))


def examine(port: int) -> Iterator[Finding]:
    """Look at everything; a look that fails is a finding too."""
    looks: tuple[Callable[[], Iterator[Finding]], ...] = (
        _versions,
        _extension,
        _memory,
        _limits,
        lambda: _port(port),
        _directories,
        _gpu,
    )
    for look in looks:
        try:
            yield from look()
        except Exception as error:
            yield Finding(WARNING, "doctor", f"could not look: {error}")


def _versions() -> Iterator[Finding]:
    yield Finding(
        OK, "octavo", f"{__version__}, Python {platform.python_version()}, {platform.platform()}"
    )
    from importlib.metadata import PackageNotFoundError, version  # noqa: PLC0415 - 20 ms

    for name in _LIBRARIES:
        try:
            yield Finding(OK, "library", f"{name} {version(name)}")
        except PackageNotFoundError:
            yield Finding(FAULT, "library", f"{name} is missing: pip install {name}")


def _extension() -> Iterator[Finding]:
    try:
        from octavo import _core  # noqa: PLC0415 - it may be what is broken
    except ImportError as error:
        yield Finding(FAULT, "engine", f"{error}: install Octavo again")
        return
    features = _core.cpu_features()
    cores = len(os.sched_getaffinity(0))
    yield Finding(OK, "engine", "built with CUDA" if _core.has_cuda() else "built for the CPU")
    level = OK if "avx2" in features else FAULT
    remedy = "" if level == OK else "; AVX2 is needed"
    yield Finding(level, "cpu", f"{cores} cores, {' '.join(features)}{remedy}")


def _memory() -> Iterator[Finding]:
    fields = dict(
        line.split(":", 1) for line in Path("/proc/meminfo").read_text("ascii").splitlines()
    )
    available = int(fields["MemAvailable"].split()[0]) * 1024
    limit = _cgroup_limit()
    usable = min(available, limit) if limit else available
    text = f"{available / 1e9:.1f} GB available"
    if limit:
        text += f", limited to {limit / 1e9:.1f} GB by the control group"
    if usable < _WANTED_MEMORY_BYTES:
        yield Finding(WARNING, "memory", f"{text}: too little for most models")
    else:
        yield Finding(OK, "memory", text)


def _cgroup_limit() -> int:
    """Bytes, 0 where there is no limit."""
    try:
        text = Path("/sys/fs/cgroup/memory.max").read_text("ascii").strip()
    except OSError:
        return 0
    return int(text) if text.isdecimal() else 0


def _limits() -> Iterator[Finding]:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    text = f"{hard} open files"
    if 0 <= hard < _WANTED_DESCRIPTORS:
        yield Finding(WARNING, "limits", f"{text}: raise ulimit -n for many connections")
    else:
        yield Finding(OK, "limits", text)


def _port(port: int) -> Iterator[Finding]:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            text = f"{port}: {error.strerror}; choose another with --port"
            yield Finding(WARNING, "port", text)
        else:
            yield Finding(OK, "port", f"{port} is free")


def _directories() -> Iterator[Finding]:
    writable = [name for name in runtime_directories() if os.access(name, os.W_OK)]
    if writable:
        yield Finding(OK, "sockets", f"in {writable[0]}")
    else:
        yield Finding(FAULT, "sockets", "no directory can be written: set TMPDIR")
    from huggingface_hub.constants import HF_HUB_CACHE  # noqa: PLC0415 - 0.2 s

    for subject, path in (("demos", cache_directory()), ("hub cache", Path(HF_HUB_CACHE))):
        yield _cache(subject, path)


def _cache(subject: str, path: Path) -> Finding:
    existing = next(parent for parent in (path, *path.parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    text = f"{path}, {free / 1e9:.1f} GB free"
    if not os.access(existing, os.W_OK):
        return Finding(WARNING, subject, f"{text}, not writable: downloads will fail")
    if free < _WANTED_DISK_BYTES:
        return Finding(WARNING, subject, f"{text}: too little for most models")
    return Finding(OK, subject, text)


def _gpu() -> Iterator[Finding]:
    version = Path("/proc/driver/nvidia/version")
    if not version.exists():
        yield Finding(OK, "gpu", "no NVIDIA driver: models run on the CPU")
        return
    yield Finding(OK, "gpu", version.read_text("ascii").splitlines()[0])
    from octavo import _core  # noqa: PLC0415 - see _extension

    if not _core.has_cuda():
        yield Finding(WARNING, "gpu", "this build has no CUDA: build Octavo with OCTAVO_CUDA=ON")
        return
    count = _core.num_cuda_devices()
    if count:
        yield Finding(OK, "gpu", f"{count} can be used")
    else:
        yield Finding(WARNING, "gpu", "none can be used: see nvidia-smi and CUDA_VISIBLE_DEVICES")
