from __future__ import annotations

import os
import pty
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from model.checkpoints import write_model
from model.hub_server import HubServer
from octavo.cli.main import main

if TYPE_CHECKING:
    from pathlib import Path

    from _pytest.capture import CaptureFixture

REPO = "someone/tiny"


@pytest.fixture
def hub(tmp_path: Path) -> HubServer:
    path = write_model(tmp_path / "source")
    return HubServer(REPO, {each.name: each.read_bytes() for each in path.iterdir()})


def pull(hub: HubServer, directory: Path, **streams: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "octavo.cli.main", "pull", REPO]
    return subprocess.run(
        [*command, "--download-dir", str(directory)],
        env={**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0"},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        **(streams or {"stderr": subprocess.PIPE}),
    )


def test_prints_the_path_and_lines_of_progress(hub: HubServer, tmp_path: Path) -> None:
    with hub:
        done = pull(hub, tmp_path / "hub")
    assert done.returncode == 0, done.stderr
    path = done.stdout.strip()
    assert path.startswith(str(tmp_path / "hub"))
    assert os.path.exists(f"{path}/model.safetensors")  # noqa: PTH110
    assert done.stderr.splitlines()[-1].endswith("(100%)")
    assert all(line.startswith("INFO:     Downloading ") for line in done.stderr.splitlines())


def test_shows_a_bar_on_a_terminal(hub: HubServer, tmp_path: Path) -> None:
    reader, writer = pty.openpty()
    shown = bytearray()

    def collect() -> None:
        try:
            while data := os.read(reader, 4096):
                shown.extend(data)
        except OSError:  # the terminal's other end is closed
            pass

    thread = threading.Thread(target=collect)
    thread.start()
    with hub:
        done = pull(hub, tmp_path / "hub", stderr=writer)
    os.close(writer)
    thread.join()
    os.close(reader)
    assert done.returncode == 0
    assert b"Downloading" in shown
    assert b"INFO" not in shown


def test_what_does_not_exist_ends_with_3(
    hub: HubServer, tmp_path: Path, capfd: CaptureFixture[str]
) -> None:
    hub.refuse = (404, "RepoNotFound")
    with hub:
        done = pull(hub, tmp_path / "hub")
    assert done.returncode == 3
    assert done.stderr.startswith(f"ERROR:    {REPO} does not exist on the hub")
    assert main(["pull", str(tmp_path / "nowhere")]) == 3
    assert "no such file" in capfd.readouterr().err
