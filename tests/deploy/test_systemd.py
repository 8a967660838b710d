"""The systemd unit against the program's flags and exit codes."""

from __future__ import annotations

import re

from deploy.facts import ROOT, VARIABLES, load_environment
from octavo import errors

UNIT = ROOT / "deploy/systemd/octavo.service"
ENVIRONMENT = ROOT / "deploy/systemd/octavo.env"
MARGIN_S = 10


def directives() -> dict[str, list[str]]:
    """Name to values of the [Service] section."""
    section = UNIT.read_text().partition("[Service]")[2].partition("[Install]")[0]
    found: dict[str, list[str]] = {}
    for line in section.splitlines():
        if line.strip() and not line.startswith("#"):
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


def environment(*, with_examples: bool) -> dict[str, str]:
    pattern = r"^#?(\w+)=(.*)$" if with_examples else r"^(\w+)=(.*)$"
    return dict(re.findall(pattern, ENVIRONMENT.read_text(), re.MULTILINE))


def test_the_program_accepts_the_settings() -> None:
    assert set(environment(with_examples=True)) <= VARIABLES
    for with_examples in (False, True):
        config = load_environment(environment(with_examples=with_examples), [])
        assert config.model == "smollm2"
        assert config.host == "127.0.0.1"


def test_the_unit_runs_the_program() -> None:
    service = directives()
    program, *words = service["ExecStart"][0].split()
    assert program.endswith("/bin/octavo")
    assert words == ["serve"]
    assert service["EnvironmentFile"] == ["/etc/octavo/octavo.env"]


def test_readiness_comes_from_a_child_of_the_main_process() -> None:
    service = directives()
    assert service["Type"] == ["notify"]
    assert service["NotifyAccess"] == ["all"]
    assert int(service["WatchdogSec"][0]) >= 10


def test_systemd_waits_longer_than_the_server() -> None:
    service = directives()
    config = load_environment(environment(with_examples=False), [])
    assert int(service["TimeoutStopSec"][0]) >= config.shutdown_timeout + MARGIN_S
    assert service["TimeoutStartSec"] == ["infinity"]
    assert service["KillMode"] == ["mixed"]


def test_what_would_fail_again_is_not_tried_again() -> None:
    service = directives()
    hopeless = (
        errors.ConfigError,
        errors.ModelNotFoundError,
        errors.UnsupportedModelError,
        errors.OutOfMemoryError,
    )
    codes = {str(error.exit_code) for error in hopeless}
    assert set(service["RestartPreventExitStatus"][0].split()) == codes
    assert service["Restart"] == ["on-failure"]


def test_directories_are_those_that_the_variables_name() -> None:
    service = directives()
    named = dict(value.split("=", 1) for value in service["Environment"])
    assert named["XDG_CACHE_HOME"] == f"/var/cache/{service['CacheDirectory'][0]}"
    assert named["HF_HOME"].startswith(named["XDG_CACHE_HOME"])
    assert named["XDG_RUNTIME_DIR"] == f"/run/{service['RuntimeDirectory'][0]}"
    assert service["RuntimeDirectoryMode"] == ["0700"]
