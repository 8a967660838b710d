"""The start: what every probe says in every phase, what the console says, how faults end it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from e2e.serving import (
    FAKE,
    GUNICORN,
    OCTAVO,
    Launcher,
    NotifySocket,
    Server,
    free_port,
    wait_for,
)
from octavo.engine.status_page import PHASES

READY_PROBES = ("/health", "/ready", "/readyz", "/ping")
LOADING = list(PHASES[PHASES.index("downloading") : PHASES.index("ready")])


def hang_in(phase: str) -> dict[str, object]:
    return {"fail": [phase, "hang"]}


# --- Probes in every phase -----------------------------------------------------------------------


def test_health_goes_through_the_phases_and_turns_200_once(start: Launcher, tmp_path: Path) -> None:
    gates = tmp_path / "gates"
    gates.mkdir()
    server = start(command=FAKE, plan={"phase_s": 0.2, "gates": str(gates)})
    seen: list[tuple[str, float]] = []
    statuses: list[int | None] = []

    def phase() -> str:
        answer = server.get("/health")
        statuses.append(answer.status)
        if answer.status == 200:
            return "ready"
        body = answer.json
        assert body["status"] == "loading"
        assert body["elapsed_s"] >= 0
        assert int(answer.headers["Retry-After"]) >= 1
        seen.append((body["phase"], body["progress"]))
        return str(body["phase"])

    server.wait_listening()
    for wanted in LOADING:
        wait_for(lambda wanted=wanted: phase() == wanted, wanted)
        (gates / wanted).touch()
    wait_for(lambda: phase() == "ready", "readiness")
    assert [phase() for _ in range(5)] == ["ready"] * 5
    phases = list(dict.fromkeys(name for name, _ in seen))
    assert [name for name in phases if name in LOADING] == LOADING
    for name in phases:
        progress = [share for each, share in seen if each == name]
        assert progress == sorted(progress)
    assert set(statuses) == {503, 200}
    assert statuses == sorted(statuses, reverse=True), "200 once, and for good"


@pytest.mark.parametrize("phase", LOADING)
def test_every_route_tells_the_phase(start: Launcher, phase: str) -> None:
    server = start(command=FAKE, plan=hang_in(phase))
    server.wait_listening()
    server.wait_phase(phase)
    for path in READY_PROBES:
        answer = server.get(path)
        assert (answer.status, answer.json["phase"]) == (503, phase)
    assert server.get("/livez").status == 200
    assert server.get("/startupz").json["phase"] == phase
    assert server.get("/health?generate=1").json["phase"] == phase
    models = server.get("/v1/models")
    assert (models.status, models.json["data"][0]["id"]) == (200, start.model)
    assert server.get("/version").status == 200
    refused = server.complete()
    assert refused.status == 503
    assert refused.json["error"]["code"] == "not_ready"
    assert phase.replace("_", " ") in refused.json["error"]["message"]
    assert int(refused.headers["Retry-After"]) >= 1


def test_every_probe_answers_head_and_get_when_ready(start: Launcher) -> None:
    server = start().wait_ready()
    for path in (*READY_PROBES, "/livez", "/startupz", "/health?generate=1"):
        answer = server.get(path)
        assert (answer.status, answer.json) == (200, {"status": "healthy"}), path
        head = server.request("HEAD", path)
        assert (head.status, head.text) == (200, "")
        assert head.headers["Content-Type"].startswith("application/json")
    assert server.request("POST", "/health").status == 405


def test_probes_need_no_key(start: Launcher) -> None:
    server = start("--api-key", "secret").wait_ready()
    assert [server.get(path).status for path in (*READY_PROBES, "/livez", "/startupz")] == [200] * 6
    assert server.complete().status == 401


def test_the_port_answers_long_before_the_model_is_there(start: Launcher) -> None:
    server = start(command=FAKE, plan=hang_in("downloading"))
    server.wait_listening()
    assert server.phase() in ("binding", "configuring", "downloading")


def test_metrics_carry_the_durations_of_the_start(start: Launcher) -> None:
    server = start().wait_ready()
    text = server.get("/metrics").text
    for phase in ("configuring", "loading_weights", "allocating_kv_cache", "warming_up"):
        assert re.search(rf'octavo:startup_seconds{{.*phase="{phase}"}} [0-9.]+', text), phase


# --- The console ---------------------------------------------------------------------------------


def test_the_console_tells_the_start_in_order(start: Launcher) -> None:
    server = start().wait_ready()
    wait_for(lambda: "Try: curl" in server.log(), "the last line")
    server.stop()
    log = server.log()
    wanted = [
        f"INFO:     Started server process [{server.process.pid}]",
        "INFO:     Waiting for application startup",
        "INFO:     Loading model… ",
        "INFO:     Model loaded successfully",
        "INFO:     Application startup complete",
        f"INFO:     Octavo running on http://127.0.0.1:{server.port}",
        "INFO:     Model ",
        "INFO:     KV cache ",
        "INFO:     Ready in ",
        "INFO:     Try: curl ",
        "INFO:     Shutting down",
        f"INFO:     Finished server process [{server.process.pid}]",
    ]
    place = 0
    for line in wanted:
        place = log.find(line, place) + 1
        assert place, line
    assert "Traceback" not in log


def test_the_curl_line_works(start: Launcher) -> None:
    server = start().wait_ready()
    wait_for(lambda: "Try: curl" in server.log(), "the curl line")
    line = next(x for x in server.log().splitlines() if "Try: curl" in x).partition("Try: ")[2]
    result = subprocess.run(
        ["bash", "-c", f"{line} -s"], capture_output=True, timeout=60, check=True
    )
    assert json.loads(result.stdout)["choices"][0]["message"]["role"] == "assistant"


def test_json_messages_go_to_a_file(start: Launcher, tmp_path: Path) -> None:
    file = tmp_path / "octavo.jsonl"
    server = start("--log-format", "json", "--log-file", str(file)).wait_ready()
    server.complete()
    wait_for(lambda: "Application startup complete" in file.read_text(), "the announcement")
    server.stop()
    entries = [json.loads(line) for line in file.read_text().splitlines()]
    assert all({"time", "level", "message", "pid"} <= entry.keys() for entry in entries)
    assert "Application startup complete" in [entry["message"] for entry in entries]
    phases = {entry["phase"]: entry["seconds"] for entry in entries if "phase" in entry}
    assert {"loading_weights", "warming_up", "self_testing"} <= phases.keys()
    access = [entry for entry in entries if entry.get("path") == "/v1/completions"]
    assert [(entry["status"], entry["method"]) for entry in access] == [(200, "POST")]
    assert server.log() == ""


def test_no_line_for_requests_when_not_wanted(start: Launcher) -> None:
    server = start("--disable-log-requests").wait_ready()
    server.complete()
    server.stop()
    assert "/v1/completions HTTP" not in server.log()


def test_prompts_are_never_logged(start: Launcher) -> None:
    server = start("--log-level", "debug").wait_ready()
    server.complete(prompt="xylophonequartz")
    server.stop()
    assert "xylophonequartz" not in server.log()


# --- Faults that end the start -------------------------------------------------------------------


def fails(server: Server, code: int, *words: str) -> None:
    assert server.wait() == code, server.log()
    last = server.last_line()
    assert last.startswith("ERROR:    ")
    for word in words:
        assert word in last
    assert "Traceback" not in server.log()
    assert server.runtime_directories() == []
    assert server.children() == {}


def test_a_model_that_is_not_there_ends_with_3(start: Launcher) -> None:
    fails(start(model="/nowhere/model"), 3, "/nowhere/model")


def test_a_damaged_file_ends_with_3(start: Launcher, tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF" + b"\x03\x00\x00\x00" + b"\xff" * 64)
    fails(start(model=str(file)), 3, str(file))


def test_an_unknown_architecture_ends_with_4(
    start: Launcher, tiny_model: Path, tmp_path: Path
) -> None:
    model = shutil.copytree(tiny_model, tmp_path / "odd")
    config = json.loads((model / "config.json").read_text())
    config["architectures"] = ["ClairvoyantForCausalLM"]
    config["model_type"] = "clairvoyant"
    (model / "config.json").write_text(json.dumps(config))
    fails(start(model=str(model)), 4, "Clairvoyant")


def test_too_little_memory_ends_with_5(start: Launcher) -> None:
    flags = ("--kv-cache-memory-bytes", "4096", "--max-model-len", "4096")
    fails(start(*flags), 5, "KV cache")


def test_a_taken_port_ends_with_6_before_anything_is_loaded(start: Launcher) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        server = start("--port", str(port))
        fails(server, 6, str(port), "--port")
    assert "Loading model" not in server.log()


def test_a_second_server_on_the_same_socket_ends_with_6(start: Launcher, tmp_path: Path) -> None:
    path = str(tmp_path / "octavo.sock")
    first = start("--uds", path)
    wait_for(lambda: "running on" in first.log(), "the first server")
    second = start("--uds", path)
    assert second.wait() == 6
    assert path in second.last_line()
    assert Path(path).stat().st_mode & 0o777 == 0o700
    assert first.stop() == 0
    assert not Path(path).exists()


def test_an_address_of_another_machine_ends_with_2(start: Launcher) -> None:
    fails(start("--host", "192.0.2.1"), 2, "--host", "192.0.2.1")


def test_a_bad_certificate_ends_with_2(start: Launcher, tmp_path: Path) -> None:
    for name in ("key", "cert"):
        (tmp_path / name).write_text("not PEM")
    flags = ("--ssl-keyfile", str(tmp_path / "key"), "--ssl-certfile", str(tmp_path / "cert"))
    fails(start(*flags), 2, "--ssl-certfile")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--chat-template", "/nowhere/t"), ("--chat-template", "/nowhere/t")),
        (("--chat-template", "{% if %}"), ("--chat-template", "not valid")),
        (("--tokenizer", "/nowhere/t"), ("--tokenizer", "/nowhere/t")),
        (("--api-key-file", "/nowhere/k"), ("--api-key-file", "/nowhere/k")),
        (("--log-file", "/nowhere/l"), ("--log-file", "/nowhere/l")),
    ],
)
def test_a_file_that_is_of_no_use_ends_with_2(
    start: Launcher, flags: tuple[str, ...], words: tuple[str, ...]
) -> None:
    fails(start(*flags), 2, *words)


def test_no_progress_ends_with_7(start: Launcher) -> None:
    server = start("--startup-timeout", "10", command=FAKE, plan=hang_in("warming_up"))
    fails(server, 7, "no progress", "warming_up", "--startup-timeout")


@pytest.mark.parametrize("code", [3, 4, 5])
def test_a_fault_in_the_engine_process_has_its_code(start: Launcher, code: int) -> None:
    fails(start(command=FAKE, plan={"fail": ["loading_weights", code]}), code)


def test_a_crash_loop_ends_with_70(start: Launcher) -> None:
    plan = {"fail": ["warming_up", "SIGSEGV"]}
    server = start("--max-engine-restarts", "1", command=FAKE, plan=plan)
    fails(server, 70, "failed 2 times", "SIGSEGV")


def test_the_cause_is_on_stderr_also_with_a_log_file(start: Launcher, tmp_path: Path) -> None:
    flags = ("--log-file", str(tmp_path / "log"))
    fails(start(*flags, command=FAKE, plan={"fail": ["loading_weights", 5]}), 5, "41.2 GB")


def test_a_chat_template_may_be_the_text_itself(start: Launcher) -> None:
    server = start("--chat-template", "{{ messages[0].content * 3 }}").wait_ready()
    body = {"messages": [{"role": "user", "content": "abc"}]}
    rendered = server.request("POST", "/tokenize", body).json
    assert (
        rendered["tokens"]
        == server.request("POST", "/tokenize", {"prompt": "abc" * 3}).json["tokens"]
    )
    assert server.stop() == 0


# --- A check without a start ----------------------------------------------------------------------


def test_check_prints_the_memory_plan_and_starts_nothing(start: Launcher) -> None:
    server = start("--check", "--max-model-len", "2k")
    assert server.wait() == 0
    lines = dict(line.split(None, 1) for line in server.log().splitlines())
    for name in ("Model", "Tokenizer", "Device", "Weights", "Workspace", "Together", "Address"):
        assert name in lines
    assert "67.1 MB" in server.log()
    assert "of 2,048 tokens" in server.log()
    assert "Loading" not in server.log()


def test_check_finds_what_a_start_would_find(start: Launcher, tmp_path: Path) -> None:
    fails(start("--check", model="/nowhere/model"), 3, "/nowhere/model")
    fails(start("--check", "--chat-template", "/nowhere/t"), 2, "--chat-template")
    fails(
        start("--check", "--kv-cache-memory-bytes", "4096", "--max-model-len", "4k"), 5, "KV cache"
    )
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        fails(start("--check", "--port", str(other.getsockname()[1])), 6, "--port")
    path = tmp_path / "octavo.sock"
    assert start("--check", "--uds", str(path)).wait() == 0
    assert not path.exists()


# --- Other ways to launch ------------------------------------------------------------------------


def test_gunicorn_launches_the_same_server(start: Launcher) -> None:
    server = start(command=GUNICORN).wait_ready()
    assert server.complete().json["usage"]["completion_tokens"] == 4
    wait_for(
        lambda: f"Octavo running on http://127.0.0.1:{server.port}" in server.log(), "the address"
    )
    assert server.stop() == 0
    assert server.runtime_directories() == []


def test_gunicorn_ends_with_our_exit_codes(start: Launcher) -> None:
    fails(start(command=GUNICORN, model="/nowhere/model"), 3, "/nowhere/model")
    fails(start(command=GUNICORN, OCTAVO_BLOCK_SIZE="0"), 2, "OCTAVO_BLOCK_SIZE")


def test_a_configuration_file_is_enough(start: Launcher, tmp_path: Path, tiny_model: Path) -> None:
    file = tmp_path / "octavo.yaml"
    file.write_text(
        f"model: {tiny_model}\nload-format: dummy\nkv-cache-memory-bytes: 32MiB\n"
        "served-model-name: [tiny, alias]\n"
    )
    server = start("--config", str(file), model="ignored-below")
    fails(server, 3)
    port = str(free_port())
    command = (*OCTAVO[:-1], "serve", "--config", str(file), "--port", port)
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        named = Server(process, int(port), tmp_path / "none")
        wait_for(lambda: named.status_of() == 200, "readiness")
        assert [card["id"] for card in named.get("/v1/models").json["data"]] == ["tiny", "alias"]
    finally:
        process.terminate()
        assert process.wait(60) == 0


def test_several_workers_share_one_engine(start: Launcher) -> None:
    server = start("--api-server-count", "3").wait_ready()
    wait_for(lambda: len(server.worker_pids()) == 3, "three workers")
    assert [server.complete().status for _ in range(12)] == [200] * 12
    assert server.stop() == 0


def test_tls(start: Launcher, tmp_path: Path) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl to make a certificate with")
    key, cert = str(tmp_path / "key.pem"), str(tmp_path / "cert.pem")
    subprocess.run(
        [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
         "-keyout", key, "-out", cert, "-days", "2", "-subj", "/CN=localhost"],
        check=True, capture_output=True,
    )  # fmt: skip
    server = start("--ssl-keyfile", key, "--ssl-certfile", cert)

    def status() -> str:
        return subprocess.run(
            ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "--cacert", cert,
             f"https://localhost:{server.port}/health"],
            capture_output=True, text=True, check=False,
        ).stdout  # fmt: skip

    wait_for(lambda: status() == "200", "readiness over TLS")
    wait_for(lambda: f"https://127.0.0.1:{server.port}" in server.log(), "the address")
    with socket.create_connection(("127.0.0.1", server.port), 10) as plain:
        plain.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        plain.settimeout(10)
        with contextlib.suppress(ConnectionResetError):
            assert b"200 OK" not in plain.recv(4096)
    assert status() == "200"


# --- systemd -------------------------------------------------------------------------------------


def test_systemd_hears_of_readiness_when_it_is_true(start: Launcher, tmp_path: Path) -> None:
    notify = NotifySocket(tmp_path / "notify")
    environ = {"NOTIFY_SOCKET": notify.path, "WATCHDOG_USEC": "400000"}
    server = start(command=FAKE, plan={"phase_s": 0.5}, **environ)
    server.wait_listening()
    while True:
        heard = "READY=1" in notify.messages  # before the status, which may turn in between
        if server.status_of() == 200:
            break
        assert not heard
        time.sleep(0.05)
    wait_for(lambda: "READY=1" in notify.messages, "READY=1")
    assert "STATUS=loading weights" in notify.messages
    beats = notify.messages.count("WATCHDOG=1")
    wait_for(lambda: notify.messages.count("WATCHDOG=1") > beats + 3, "the watchdog's beats")
    server.stop()
    assert "STOPPING=1" in notify.messages


# --- What else must hold -------------------------------------------------------------------------


def test_only_the_declared_port_listens(start: Launcher) -> None:
    server = start().wait_ready()
    pids = [server.process.pid, *server.children()]
    assert listening_ports(pids) == {server.port}


def listening_ports(pids: list[int]) -> set[int]:
    inodes = set()
    for pid in pids:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            try:
                inodes.add(str(link.readlink()).removeprefix("socket:[").removesuffix("]"))
            except OSError:
                continue
    ports = set()
    for table in ("tcp", "tcp6", "udp", "udp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[9] in inodes and (table.startswith("udp") or fields[3] == "0A"):
                ports.add(int(fields[1].rpartition(":")[2], 16))
    return ports


def test_a_module_in_the_working_directory_is_not_run(start: Launcher, tmp_path: Path) -> None:
    (tmp_path / "msgspec.py").write_text("raise SystemExit('hijacked')")
    before = Path.cwd()
    os.chdir(tmp_path)
    try:
        server = start().wait_ready()
    finally:
        os.chdir(before)
    assert "hijacked" not in server.log()
    assert sys.executable in server.children()[server.engine_pid()]
