"""The command line of `octavo bench`: flags, workloads, output, and the real measurements."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from bench.stream_server import HEAD, StreamServer, chunk, completion, plain, token, usage
from octavo.bench import offline
from octavo.cli import bench, main

if TYPE_CHECKING:
    from collections.abc import Iterator

    from octavo.config import ServeConfig

LATE = str(Path(__file__).parent.parent / "bench" / "late_server.py")


def parse(*words: str) -> Any:
    return main.build_parser("bench").parse_args(["bench", *words])


class Server(StreamServer):
    """Knows one model and answers every completion."""

    def __init__(self) -> None:
        super().__init__(self.route)

    def route(self, request: dict[str, Any]) -> Iterator[bytes]:
        if request["_path"] == "/health":
            yield plain("200 OK", "{}")
        elif request["_path"] == "/v1/models":
            yield plain("200 OK", '{"data": [{"id": "demo"}]}')
        else:
            yield from self.reply(request)

    def reply(self, request: dict[str, Any]) -> Iterator[bytes]:
        yield from completion(request)

    @property
    def asked(self) -> list[dict[str, Any]]:
        return [body for body in self.requests if body]


# --- Flags ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("concurrency", "count"), [(1, 12), (32, 256), (256, 1024), (1024, 2048), (None, 1000)]
)
def test_the_default_number_of_requests_is_the_protocols(
    concurrency: int | None, count: int
) -> None:
    assert bench.default_requests(concurrency) == count


def test_workloads_by_flag(tmp_path: Path) -> None:
    assert len(bench.workload(parse("serve"), 12)) == 12
    fixed = bench.workload(parse("serve", "--fixed", "64,8", "--num-requests", "3"), 12)
    assert [(len(i.prompt), i.max_tokens) for i in fixed] == [(64, 8)] * 3
    other = bench.workload(parse("serve", "--fixed", "64,8", "--workload-seed", "1"), 1)
    assert other[0].prompt != fixed[0].prompt
    table = tmp_path / "t.csv"
    table.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:15:46,3,4\n2023-11-16 18:15:48,5,6\n"
    )
    arguments = parse("serve", "--trace", str(table), "--request-rate", "trace")
    items = bench.arrivals(arguments, bench.workload(arguments, 12))
    assert [i.arrival_s for i in items] == [0.0, 2.0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["serve", "--fixed", "64"], "IN,OUT"),
        (["serve", "--fixed", "64,0"], "above 0"),
        (["serve", "--concurrency", "0"], "above 0"),
        (["serve", "--request-rate", "-1"], "rate above 0"),
        (["latency", "--batch", "1,x"], "above 0"),
        (["tpot"], "invalid choice"),
        ([], "required"),
    ],
)
def test_a_wrong_flag_is_named(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert_exit(2, words)
    assert message in capsys.readouterr().err


def assert_exit(code: int, words: list[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main.main(["bench", *words])
    assert exit_.value.code == code


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["serve", "--fixed", "4,4", "--trace", "x"], "exclude each other"),
        (["serve", "--request-rate", "trace"], "needs --trace"),
        (["serve", "--goodput", "speed:9"], "expected ttft:MS"),
        (["serve", "--goodput", "ttft:fast"], "expected ttft:MS"),
        (["startup", "--", "server"], "put {port} into COMMAND"),
    ],
)
def test_flags_that_do_not_go_together(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(["bench", *words]) == 2
    assert message in capsys.readouterr().err


# --- octavo bench serve --------------------------------------------------------------------------


def test_serve(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.json"
    with Server() as server:
        code = main.main(
            ["bench", "serve", "--url", server.url, "--fixed", "16,4", "--num-requests", "10",
             "--concurrency", "3", "--goodput", "ttft:5000", "--api-key", "s3cret",
             "--json", str(path)]
        )  # fmt: skip
    assert code == 0
    assert len(server.asked) == 14  # four of them are the warm-up
    assert "demo at http" in capsys.readouterr().out
    text = path.read_text()
    assert "s3cret" not in text
    document = json.loads(text)
    assert document["flags"]["concurrency"] == 3
    figures = document["figures"]
    assert (figures["completed"], figures["output_tokens"]) == (10, 40)
    assert figures["goodput_requests_per_s"] > 0


def test_serve_open_loop(capsys: pytest.CaptureFixture[str]) -> None:
    with Server() as server:
        words = ["--request-rate", "500", "--num-requests", "20", "--fixed", "4,2", "--json", "-"]
        assert main.main(["bench", "serve", "--url", server.url, *words]) == 0
    figures = json.loads(capsys.readouterr().out)["figures"]
    assert figures["completed"] == 20
    assert figures["duration_s"] > 0.01


def test_failed_requests_fail_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    class Failing(Server):
        def reply(self, request: dict[str, Any]) -> Iterator[bytes]:
            if len(self.asked) % 2:
                yield HEAD + chunk(token()) + chunk(usage(4, 1)) + b"0\r\n\r\n"
            else:
                yield HEAD + chunk(token())

    with Failing() as server:
        code = main.main(
            ["bench", "serve", "--url", server.url, "--fixed", "4,1", "--num-requests", "10",
             "--warm-up", "0"]
        )  # fmt: skip
    assert code == 1
    assert "closed the connection" in capsys.readouterr().out


def test_an_absent_server_is_said_to_be_absent(capsys: pytest.CaptureFixture[str]) -> None:
    with Server() as server:
        url = server.url
    assert main.main(["bench", "serve", "--url", url]) == 1
    assert "No server answers at" in capsys.readouterr().err


def test_prompts(capsys: pytest.CaptureFixture[str]) -> None:
    with Server() as server:
        words = ["--lengths", "8,12", "--repeats", "2", "--streams", "0", "--json", "-"]
        assert main.main(["bench", "prompts", "--url", server.url, *words]) == 0
        assert [len(request["prompt"]) for request in server.asked] == [8] * 3 + [12] * 3
    figures = json.loads(capsys.readouterr().out)["figures"]
    assert figures["ttft_ms_again_12"] > 0


# --- octavo bench startup ------------------------------------------------------------------------


def test_startup_of_any_command(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["startup", "--runs", "1", "--json", "-", "--", sys.executable, LATE, "{port}"]
    assert main.main(["bench", *words]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["figures"]["ready_s"] > document["figures"]["first_answer_s"] > 0
    assert document["flags"]["command"] == [sys.executable, LATE, "{port}"]


def test_startup_of_a_command_that_fails(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["startup", "--runs", "1", "--", sys.executable, LATE, "{port}", "die"]
    assert main.main(["bench", *words]) == 1
    assert "the model is not there" in capsys.readouterr().err


# --- octavo bench throughput and latency ---------------------------------------------------------


class StoppedError(Exception):
    """Raised in place of loading a model."""


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["throughput"], ("smollm2", False, 256)),
        (["throughput", "m", "--enable-prefix-caching", "--max-num-seqs", "9"], ("m", True, 9)),
        (["latency", "--batch", "1,32"], ("smollm2", False, 32)),
    ],
)
def test_what_the_flags_leave_open_is_set_for_measuring(
    words: list[str], expected: tuple[str, bool, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[ServeConfig] = []

    def load(config: ServeConfig) -> offline.OfflineEngine:
        seen.append(config)
        raise StoppedError

    monkeypatch.setattr(offline, "load", load)
    with pytest.raises(StoppedError):
        main.main(["bench", *words])
    config = seen[0]
    assert (config.model, config.enable_prefix_caching, config.max_num_seqs) == expected
