"""What the README says exists, exists."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest

from deploy.facts import PROBE_PATHS, ROOT, VARIABLES
from octavo import errors
from octavo.cli.main import COMMANDS, build_parser
from octavo.engine.status_page import PHASES

TEXT = (ROOT / "README.md").read_text()
DOCUMENTS = [
    "README.md",
    "SECURITY.md",
    "deploy/README.md",
    "deploy/hardening.md",
    "bench/README.md",
    "tests/faults/README.md",
]
FOREIGN_FLAGS = {
    "--set",
    "--now",
    "--install",
    "--keep",
    "--count",
    "--seed",
    "--seconds",
    "--weights",
    "--isa",
    "--threads",
}  # of helm, systemctl, tests/ and bench/
EXAMPLES = {"--some-name", "OCTAVO_SOME_NAME"}
CMAKE_OPTIONS = {"OCTAVO_BUILD_BENCH"}
TEST_VARIABLES = {"OCTAVO_FAULTS", "OCTAVO_FAULTS_FIGURES"}


def flags_of(parser: argparse.ArgumentParser) -> set[str]:
    """Every flag of a parser and of its subcommands."""
    found = set(parser._option_string_actions)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for each in action.choices.values():
                found |= flags_of(each)
    return found


def known_flags() -> set[str]:
    return set().union(*(flags_of(build_parser(name)) for name in COMMANDS))


@pytest.mark.parametrize("name", DOCUMENTS)
def test_flags_and_variables_exist(name: str) -> None:
    text = (ROOT / name).read_text()
    flags = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text))
    variables = set(re.findall(r"OCTAVO_[A-Z_]+[A-Z]", text))
    assert flags <= known_flags() | FOREIGN_FLAGS | EXAMPLES
    assert variables <= VARIABLES | CMAKE_OPTIONS | TEST_VARIABLES | EXAMPLES


def test_probes_and_phases_are_complete() -> None:
    table = TEXT.partition("**Probes.**")[2].partition("Phases:")[0]
    assert set(re.findall(r"`(/\w+)", table)) == PROBE_PATHS
    line = re.search(r"^Phases: (.*)\.$", TEXT, re.MULTILINE)
    assert line is not None
    assert tuple(re.findall(r"`(\w+)`", line[1])) == PHASES


def test_exit_codes_are_complete() -> None:
    table = TEXT.partition("| exit code | |")[2].partition("**Memory.**")[0]
    shown = {int(code) for code in re.findall(r"^\| (\d+)", table, re.MULTILINE)}
    tree = (e for e in vars(errors).values() if isinstance(e, type))
    codes = {e.exit_code for e in tree if issubclass(e, errors.OctavoError)}
    assert shown == {0, 130} | codes


def test_commands_exist() -> None:
    shown = set(re.findall(r"^\| `octavo ([\w-]+)", TEXT, re.MULTILINE))
    for name in shown:
        build_parser(name)
    assert shown == set(COMMANDS)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_somewhere(name: str) -> None:
    file = ROOT / name
    for target in re.findall(r"\]\(([^)#]+)\)", file.read_text()):
        if not target.startswith("http"):
            assert (file.parent / target).exists(), target


def test_the_rooms_are_those_that_are_there() -> None:
    row = re.search(r"the engine: `([^`]+)`", TEXT)
    assert row is not None
    there = {d.name for d in (ROOT / "cpp").iterdir() if d.is_dir()}
    assert set(row[1].split()) == there
    assert (Path(ROOT) / "tests/run.sh").exists()
