"""The command line: quick answers, one line for each fault, exit codes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from octavo.cli.main import COMMANDS, build_parser, main
from octavo.config import options
from octavo.version import __version__

# What a start of the interpreter costs is not ours; the commands may import so little on top.
LIGHT = ("falcon", "gunicorn", "gevent", "msgspec", "torch", "jinja2", "tokenizers", "yaml",
         "huggingface_hub", "octavo._core", "asyncio")  # fmt: skip


def octavo(*words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("OCTAVO_")}
    return subprocess.run(
        [sys.executable, "-m", "octavo.cli.main", *words],
        capture_output=True, text=True, timeout=60, check=False, env={**clean, **environ},
    )  # fmt: skip


def test_version() -> None:
    result = octavo("--version")
    assert (result.returncode, result.stdout) == (0, f"octavo {__version__}\n")


@pytest.mark.parametrize("words", [["--version"], ["--help"], ["serve", "--help"]])
def test_quick_answers_import_nothing_heavy(words: list[str]) -> None:
    code = (
        "import sys; from octavo.cli.main import main\n"
        f"try: main({words!r})\nexcept SystemExit: pass\n"
        f"sys.stderr.write(repr([m for m in {LIGHT!r} if m in sys.modules]))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert result.stderr == "[]"


def test_help_names_every_command_and_option() -> None:
    text = octavo("--help").stdout
    assert all(name in text for name in COMMANDS)
    text = octavo("serve", "--help").stdout
    assert [each.flag for each in options() if each.name != "model" and each.flag not in text] == []


def test_no_words_show_the_help() -> None:
    assert "octavo serve smollm2" in octavo().stdout


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["serve", "m", "--prot", "80"], "unrecognized arguments: --prot 80. Did you mean --port?"),
        (["serve", "m", "--port", "x"], "--port: invalid value 'x'"),
        (["serve", "m", "--po", "80"], "unrecognized arguments: --po 80"),
        (["serve"], "MODEL is missing"),
        (["sing"], "invalid choice: 'sing'"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_exit_2(words: list[str], line: str) -> None:
    result = octavo(*words)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith("ERROR:    ")
    assert line in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_wrong_variable_is_named() -> None:
    result = octavo("serve", "m", OCTAVO_BLOCK_SIZE="0")
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert "OCTAVO_BLOCK_SIZE: 0 is below the minimum of 1" in result.stderr


def test_print_config_needs_no_model() -> None:
    result = octavo("serve", "--print-config", "--port", "81", OCTAVO_SEED="7")
    assert result.returncode == 0
    assert "port: 81\n" in result.stdout
    assert "seed: 7\n" in result.stdout


def test_the_whole_parser_can_be_built() -> None:
    assert build_parser() is not None


def test_a_closed_pipe_is_no_fault() -> None:
    read, write = os.pipe()
    os.close(read)
    result = subprocess.run(
        [sys.executable, "-m", "octavo.cli.main", "serve", "--print-config"],
        stdout=write, stderr=subprocess.PIPE, timeout=60, check=False,
    )  # fmt: skip
    os.close(write)
    assert result.stderr == b""


def test_main_returns_the_exit_code_of_a_fault(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "/nowhere/model", "--config", "/nowhere/file"]) == 2
    assert "--config: cannot read /nowhere/file" in capsys.readouterr().err
