"""The Dockerfile against the program: stages, user, variables, health check."""

from __future__ import annotations

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from subprocess import run
from sys import executable

import pytest

from deploy.facts import PROBE_PATHS, ROOT, VARIABLES, load_environment

TEXT = re.sub(r"\\\n\s*", "", (ROOT / "Dockerfile").read_text())
BUILD, RUNTIME = re.split(r"^FROM ", TEXT, flags=re.MULTILINE)[1:]


def instruction(stage: str, name: str) -> str:
    (found,) = re.findall(rf"^{name} (.*)$", stage, re.MULTILINE)
    return str(found)


def test_the_image_holds_no_compiler() -> None:
    assert "g++" in BUILD
    assert "apt-get" not in RUNTIME
    assert "COPY --from=build" in RUNTIME


def test_the_build_has_what_it_needs() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    kept = {line[1:] for line in ignored if line.startswith("!")}
    assert ignored[0] == "*"
    wanted = {"CMakeLists.txt", "pyproject.toml", "constraints.txt", "README.md", "LICENSE"}
    assert wanted <= kept
    assert {"cpp", "cuda", "python"} <= kept


def test_the_server_is_the_entry_point_and_runs_without_root() -> None:
    assert json.loads(instruction(RUNTIME, "ENTRYPOINT")) == ["octavo", "serve"]
    uid = instruction(RUNTIME, "USER").split(":")[0]
    assert int(uid) > 0
    assert f"--uid {uid}" in RUNTIME
    assert instruction(RUNTIME, "STOPSIGNAL") == "SIGTERM"


def test_the_program_accepts_the_variables() -> None:
    variables = dict(re.findall(r"(\w+)=(\S+)", instruction(RUNTIME, "ENV")))
    assert {name for name in variables if name.startswith("OCTAVO_")} <= VARIABLES
    words = json.loads(instruction(RUNTIME, "CMD"))
    config = load_environment(variables, words)
    assert (config.model, config.host) == ("smollm2", "0.0.0.0")
    assert str(config.port) == instruction(RUNTIME, "EXPOSE")
    assert variables["HF_HOME"].startswith(instruction(RUNTIME, "VOLUME"))


class _Health(BaseHTTPRequestHandler):
    status = 200
    paths: list[str] = []  # noqa: RUF012

    def do_GET(self) -> None:
        self.paths.append(self.path)
        self.send_response(self.status)
        self.end_headers()

    def log_message(self, format: str, *words: object) -> None:  # noqa: A002
        pass


@pytest.mark.parametrize(("status", "healthy"), [(200, True), (503, False)])
def test_the_health_check_works(status: int, healthy: bool) -> None:
    command = json.loads(re.findall(r"^HEALTHCHECK.*?CMD (\[.*\])$", RUNTIME, re.MULTILINE)[0])
    assert command[0] == "python"
    _Health.status = status
    with ThreadingHTTPServer(("127.0.0.1", 0), _Health) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        environment = {"OCTAVO_PORT": str(server.server_address[1])}
        result = run([executable, *command[1:]], env=environment, capture_output=True, check=False)
        server.shutdown()
    assert (result.returncode == 0) == healthy
    assert _Health.paths[-1] in PROBE_PATHS
