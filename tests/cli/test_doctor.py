"""octavo doctor and octavo completion."""

from __future__ import annotations

import socket
import subprocess
from typing import TYPE_CHECKING

import pytest

from octavo.cli import doctor
from octavo.cli.main import COMMANDS, main
from octavo.config import options

if TYPE_CHECKING:
    from pathlib import Path


def findings(port: int = 0) -> list[doctor.Finding]:
    return list(doctor.examine(port))


def test_this_machine_can_serve(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--port", "0"]) == 0
    text = capsys.readouterr().out
    for subject in ("octavo", "engine", "cpu", "memory", "limits", "port", "sockets", "gpu"):
        assert f" {subject} " in text, subject
    assert "could not look" not in text


def test_a_taken_port_is_a_warning() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        (found,) = [f for f in findings(port) if f.subject == "port"]
    assert found.level == doctor.WARNING
    assert "--port" in found.text


def test_nowhere_to_put_sockets_is_a_fault(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "runtime_directories", lambda: ["/nowhere"])
    assert main(["doctor", "--port", "0"]) == 1
    assert "fault    sockets" in capsys.readouterr().out


def test_a_look_that_fails_is_told_and_the_rest_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> int:
        raise RuntimeError("odd kernel")

    monkeypatch.setattr(doctor, "_cgroup_limit", fail)
    found = findings()
    assert [f.text for f in found if f.subject == "doctor"] == ["could not look: odd kernel"]
    assert "gpu" in [f.subject for f in found]


def test_a_port_that_is_no_number(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--port", "x"]) == 2
    assert "--port" in capsys.readouterr().err


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completions_know_every_command_and_option(
    shell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(name in script for name in COMMANDS)
    assert [o.flag for o in options() if o.flag.startswith("--") and o.flag not in script] == []


def test_the_bash_completion_is_bash(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    main(["completion", "bash"])
    script = tmp_path / "octavo.bash"
    script.write_text(capsys.readouterr().out)
    subprocess.run(["bash", "-n", str(script)], check=True)
