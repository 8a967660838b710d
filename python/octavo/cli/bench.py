"""`octavo bench`: throughput and latency of the engine, load on any server, start-up times."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octavo import config
from octavo.cli import client_arguments
from octavo.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from octavo.bench.offline import OfflineEngine
    from octavo.bench.report import Goals
    from octavo.bench.workloads import Item

    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]  # noqa: SLF001

DEMO = "smollm2"
MANY = 1000
THROUGHPUT_SEQS = 256
MAX_QUEUED = 1 << 20
DECODE_BATCHES = (1, 8, 64, 256)
PREFILL_LENGTHS = (512, 2048, 8192)
PROMPT_LENGTHS = (1024, 4096, 16384, 30000)
GOALS = ("ttft", "tpot", "e2e")


def add_parser(subparsers: Subparsers) -> None:
    """Add `bench` and its five measurements to the command line."""
    parser = subparsers.add_parser("bench", help="measure the engine, a server or its start")
    kinds = parser.add_subparsers(dest="bench", metavar="WHAT", required=True)
    _add_throughput(kinds)
    _add_latency(kinds)
    _add_serve(kinds)
    _add_prompts(kinds)
    _add_startup(kinds)


def _add_throughput(kinds: Subparsers) -> None:
    parser = kinds.add_parser(
        "throughput",
        help="tokens per second of the engine, without HTTP",
        description="Run a workload through the engine in this process, all requests at once.",
    )
    _add_workload(parser)
    config.add_arguments(parser)
    _add_output(parser, throughput)


def _add_latency(kinds: Subparsers) -> None:
    parser = kinds.add_parser(
        "latency",
        help="time of a decode step by batch and of a prefill by length, without HTTP",
        description="Decode: 128 tokens in, 256 out. Prefill: one prompt, one token out.",
    )
    parser.add_argument("--batch", type=_numbers, default=DECODE_BATCHES, metavar="N,N")
    parser.add_argument("--prefill", type=_numbers, default=PREFILL_LENGTHS, metavar="N,N")
    parser.add_argument("--repeats", type=_count, default=3, metavar="N", help="the median counts")
    config.add_arguments(parser)
    _add_output(parser, latency)


def _add_serve(kinds: Subparsers) -> None:
    parser = kinds.add_parser(
        "serve",
        help="load on any OpenAI-compatible server",
        description="Send streamed, greedy completions of exact lengths and time every event.",
    )
    _add_workload(parser)
    load = parser.add_argument_group("Load")
    load.add_argument("--concurrency", type=_count, default=1, metavar="N", help="at a time")
    load.add_argument(
        "--request-rate", type=_rate, metavar="R|inf|trace",
        help="arrivals a second at random instead, or as the trace has them",
    )  # fmt: skip
    load.add_argument("--processes", type=_count, default=1, metavar="N", help="load processes")
    load.add_argument("--warm-up", type=int, default=4, metavar="N", help="requests sent before")
    load.add_argument(
        "--goodput", action="append", metavar="WHAT:MS",
        help="limit that a good request keeps: ttft, tpot or e2e, in ms; may be repeated",
    )  # fmt: skip
    client_arguments.add_connection_arguments(parser)
    _add_output(parser, serve)


def _add_prompts(kinds: Subparsers) -> None:
    parser = kinds.add_parser(
        "prompts",
        help="long prompts on a server: sent again, and beside streams",
        description="Time to the first token of a new prompt and of the same one again, by length; "
        "then streams while long prompts arrive one by one.",
    )
    parser.add_argument(
        "--lengths", type=_numbers, default=PROMPT_LENGTHS, metavar="N,N", help="sent again"
    )
    parser.add_argument("--repeats", type=_count, default=5, metavar="N", help="the median counts")
    parser.add_argument("--streams", type=int, default=32, metavar="N", help="0: no second part")
    parser.add_argument("--stream-tokens", type=_count, default=3072, metavar="N", help="of each")
    parser.add_argument("--arrivals", type=_count, default=8, metavar="N", help="long prompts")
    parser.add_argument("--arrival-tokens", type=_count, default=8192, metavar="N", help="of each")
    parser.add_argument("--gap", type=float, default=1.0, metavar="S", help="between arrivals")
    client_arguments.add_connection_arguments(parser)
    _add_output(parser, prompts)


def _add_startup(kinds: Subparsers) -> None:
    parser = kinds.add_parser(
        "startup",
        help="from exec to ready, to the first token, to the exit",
        description="Start a server several times. Without COMMAND it is `octavo serve smollm2`; "
        "in COMMAND and --url, {port} becomes a free port.",
    )
    parser.add_argument("--runs", type=_count, default=3, metavar="N", help="the medians count")
    parser.add_argument("--url", default="http://127.0.0.1:{port}", help="where COMMAND answers")
    parser.add_argument("--health-path", default="/health", metavar="PATH")
    parser.add_argument("--limit", type=float, default=600.0, metavar="S", help="longest start")
    parser.add_argument("command", nargs="*", metavar="-- COMMAND", help="server to start")
    _add_output(parser, startup)


def _add_workload(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("Workload (default: lengths like ShareGPT's)")
    group.add_argument("--fixed", type=_lengths, metavar="IN,OUT", help="equal lengths instead")
    group.add_argument("--trace", type=Path, metavar="FILE", help="lengths of a CSV trace instead")
    group.add_argument("--num-requests", type=_count, metavar="N")
    group.add_argument("--workload-seed", type=int, metavar="N", help="seed of the token ids")


def _add_output(parser: argparse.ArgumentParser, run: Callable[[argparse.Namespace], int]) -> None:
    parser.add_argument("--json", metavar="FILE", help="write all figures there; - is the screen")
    parser.set_defaults(run=run)


# --- The measurements ----------------------------------------------------------------------------


def throughput(arguments: argparse.Namespace) -> int:
    """Run `octavo bench throughput`."""
    from octavo.bench import report  # noqa: PLC0415 - heavy, and not for --help
    from octavo.bench import throughput as bench  # noqa: PLC0415

    items = workload(arguments, MANY)
    with _engine(arguments, num_seqs=THROUGHPUT_SEQS) as engine:
        figures = bench.measure(engine, items)
    _publish(report.publish, "Throughput", arguments, figures)
    return 0


def latency(arguments: argparse.Namespace) -> int:
    """Run `octavo bench latency`."""
    from octavo.bench import latency as bench  # noqa: PLC0415 - heavy, and not for --help
    from octavo.bench import report  # noqa: PLC0415

    with _engine(arguments, num_seqs=max(arguments.batch)) as engine:
        figures = bench.measure(engine, arguments.batch, arguments.prefill, arguments.repeats)
    _publish(report.publish, "Latency", arguments, figures)
    return 0


def _engine(arguments: argparse.Namespace, num_seqs: int) -> OfflineEngine:
    """The engine that the flags describe; what they leave open is set as benchmarks need it.

    The prefix cache is off unless it is asked for: a warm one would be measured otherwise.
    """
    from octavo.bench import offline  # noqa: PLC0415 - not for --help

    open_ = {
        "model": DEMO,
        "enable_prefix_caching": False,
        "max_num_seqs": num_seqs,
        "max_num_queued_reqs": MAX_QUEUED,
    }
    for name, value in open_.items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)
    return offline.load(config.ServeConfig.from_cli_args(arguments))


def serve(arguments: argparse.Namespace) -> int:
    """Run `octavo bench serve`; 1 if a request failed."""
    from octavo.bench import report  # noqa: PLC0415 - heavy, and not for --help
    from octavo.bench import serve as bench  # noqa: PLC0415
    from octavo.bench.load import Target  # noqa: PLC0415
    from octavo.cli import openai_client  # noqa: PLC0415
    from octavo.cli.waiting import wait_until_ready  # noqa: PLC0415

    concurrency = None if arguments.request_rate is not None else arguments.concurrency
    items = arrivals(arguments, workload(arguments, default_requests(concurrency)))
    goals = _goals(arguments.goodput)
    client = openai_client.from_arguments(arguments)
    wait_until_ready(client, arguments.wait)
    target = Target(client.url, client.model(arguments.model or ""), client.api_key)
    load = bench.Load(concurrency, arguments.processes, arguments.warm_up, goals, arguments.timeout)
    figures = bench.measure(target, items, load)
    _publish(report.publish, f"{target.model} at {target.url}", arguments, figures)
    return 1 if figures["failed"] else 0


def prompts(arguments: argparse.Namespace) -> int:
    """Run `octavo bench prompts`."""
    from octavo.bench import prompts as bench  # noqa: PLC0415 - heavy, and not for --help
    from octavo.bench import report  # noqa: PLC0415
    from octavo.bench.load import Target  # noqa: PLC0415
    from octavo.cli import openai_client  # noqa: PLC0415
    from octavo.cli.waiting import wait_until_ready  # noqa: PLC0415

    client = openai_client.from_arguments(arguments)
    wait_until_ready(client, arguments.wait)
    target = Target(client.url, client.model(arguments.model or ""), client.api_key)
    plan = bench.Plan(
        lengths=arguments.lengths,
        repeats=arguments.repeats,
        num_streams=arguments.streams,
        stream_tokens=arguments.stream_tokens,
        num_arrivals=arguments.arrivals,
        arrival_tokens=arguments.arrival_tokens,
        gap_s=arguments.gap,
    )
    figures = bench.measure(target, plan)
    _publish(report.publish, f"Prompts to {target.model} at {target.url}", arguments, figures)
    return 0


def startup(arguments: argparse.Namespace) -> int:
    """Run `octavo bench startup`."""
    from octavo.bench import report  # noqa: PLC0415 - heavy, and not for --help
    from octavo.bench import startup as bench  # noqa: PLC0415

    own = not arguments.command
    command = arguments.command or [*program(), "serve", DEMO, "--port", "{port}"]
    if "{port}" in arguments.url and not any("{port}" in word for word in command):
        raise ConfigError("octavo bench startup: put {port} into COMMAND, or give --url")
    launch = bench.Launch(command, arguments.url, arguments.health_path, arguments.limit)
    figures = bench.measure(launch, arguments.runs)
    if own:
        figures["version_ms"] = bench.command_ms([*program(), "--version"])
        figures["help_ms"] = bench.command_ms([*program(), "--help"])
    _publish(report.publish, "Start of " + " ".join(command), arguments, figures)
    return 0


def program() -> list[str]:
    """This installation's `octavo`, as a shell would run it."""
    script = Path(sys.executable).with_name("octavo")
    return [str(script)] if script.exists() else [sys.executable, "-m", "octavo.cli.main"]


# --- From flags to what the measurements take ----------------------------------------------------


def workload(arguments: argparse.Namespace, default_count: int) -> list[Item]:
    """The requests that the flags ask for."""
    from octavo.bench import workloads  # noqa: PLC0415 - not for --help

    seed = {} if arguments.workload_seed is None else {"seed": arguments.workload_seed}
    count = arguments.num_requests or default_count
    if arguments.fixed and arguments.trace:
        raise ConfigError("octavo bench: --fixed and --trace exclude each other")
    if arguments.fixed:
        return workloads.fixed(count, *arguments.fixed, **seed)
    if arguments.trace:
        return workloads.trace(arguments.trace, arguments.num_requests, **seed)
    return workloads.sharegpt_like(count, **seed)


def arrivals(arguments: argparse.Namespace, items: list[Item]) -> list[Item]:
    """The requests with the arrival times that --request-rate asks for."""
    from octavo.bench import workloads  # noqa: PLC0415 - not for --help

    rate = arguments.request_rate
    if rate == "trace":
        if not arguments.trace:
            raise ConfigError("octavo bench serve: --request-rate trace needs --trace FILE")
        return items
    return items if rate is None else workloads.poisson_arrivals(items, rate)


def default_requests(concurrency: int | None) -> int:
    """Enough for a steady state: 12, 256 and 1,024 at a concurrency of 1, 32 and 256."""
    if concurrency is None:
        return MANY
    return 12 if concurrency == 1 else max(min(8 * concurrency, 1024), 2 * concurrency)


def _goals(texts: Sequence[str] | None) -> Goals | None:
    from octavo.bench.report import Goals  # noqa: PLC0415 - not for --help

    if not texts:
        return None
    limits: dict[str, float] = {}
    for text in texts:
        name, _, value = text.partition(":")
        try:
            limits[f"{name}_ms"] = float(value)
        except ValueError:
            name = ""
        if name not in GOALS:
            raise ConfigError(f"--goodput {text}: expected ttft:MS, tpot:MS or e2e:MS")
    return Goals(**limits)


def _publish(
    publish: Callable[[str, dict[str, object], str | None], None],
    title: str,
    arguments: argparse.Namespace,
    figures: dict[str, object],
) -> None:
    flags: dict[str, Any] = {
        name: str(value) if isinstance(value, Path) else value
        for name, value in vars(arguments).items()
        if name not in ("run", "json", "api_key") and value is not None
    }
    publish(title, {"flags": flags, "figures": figures}, arguments.json)


# --- Parsers of flags ----------------------------------------------------------------------------


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(_count(part) for part in text.split(","))


def _lengths(text: str) -> tuple[int, int]:
    numbers = _numbers(text)
    if len(numbers) != 2:
        raise argparse.ArgumentTypeError(f"{text!r} is not IN,OUT")
    return numbers[0], numbers[1]


def _rate(text: str) -> float | str:
    if text == "trace":
        return text
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not rate > 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a rate above 0, inf or trace")
    return rate
