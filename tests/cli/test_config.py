"""The configuration: one definition of each option, four sources, one line for each fault."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import pytest

from octavo.cli.main import build_parser
from octavo.config import ServeConfig, as_yaml, load, options
from octavo.engine.systemd import take_notify_socket
from octavo.errors import ConfigError
from octavo.options import parse_length, parse_list, parse_size

if TYPE_CHECKING:
    from pathlib import Path

OPTIONS = list(options())
BY_NAME = {each.name: each for each in OPTIONS}


def sample(each: Any) -> Any:
    """A value other than the default, and its text."""
    if each.choices:
        return each.choices[-1] if each.choices[-1] != each.default else each.choices[0]
    if each.is_switch:
        return not each.default
    special = {
        "device": "cpu", "tensor_parallel_size": 1, "ssl_keyfile": "", "ssl_certfile": "",
        "gpu_memory_utilization": 0.5, "max_num_batched_tokens": 4096,
        "lora_modules": ("one=/a", "two=/b"),
    }  # fmt: skip
    if each.name in special:
        return special[each.name]
    if isinstance(each.default, tuple):
        return ("one", "two")
    if isinstance(each.default, int):
        return each.default + 1
    return each.default + 1.5 if isinstance(each.default, float) else "some-text"


def text_of(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def flags_of(each: Any, value: Any) -> list[str]:
    if each.name == "model":
        return [value]
    if each.is_switch:
        return [each.flag if value else each.flag.replace("--", "--no-", 1)]
    return [each.flag, *(value if isinstance(value, tuple) else [str(value)])]


def from_flags(words: list[str]) -> ServeConfig:
    return ServeConfig.from_cli_args(build_parser("serve").parse_args(["serve", *words]))


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for each in OPTIONS:
        monkeypatch.delenv(each.variable, raising=False)
    monkeypatch.delenv("OCTAVO_CONFIG", raising=False)


def test_every_field_is_an_option_with_help_and_group() -> None:
    assert [each.name for each in OPTIONS] == [f.name for f in dataclasses.fields(ServeConfig)]
    assert all(each.help and each.group for each in OPTIONS)


@pytest.mark.parametrize("each", OPTIONS, ids=lambda o: o.name)
def test_every_option_comes_from_flag_variable_and_file(each: Any, tmp_path: Path) -> None:
    value = sample(each)
    assert getattr(from_flags(flags_of(each, value)), each.name) == value
    assert getattr(load({}, {each.variable: text_of(value)}), each.name) == value
    file = tmp_path / "octavo.yaml"
    written = list(value) if isinstance(value, tuple) else text_of(value)
    for key in (each.key, each.name):
        file.write_text(f"{key}: {written!r}\n")
        assert getattr(load({}, {}, file), each.name) == value


@pytest.mark.parametrize("each", OPTIONS, ids=lambda o: o.name)
def test_every_default_is_valid_and_shown(each: Any) -> None:
    assert getattr(ServeConfig(), each.name) == each.default


def test_flag_wins_over_variable_over_file_over_default(tmp_path: Path) -> None:
    file = tmp_path / "octavo.yaml"
    file.write_text("port: 1\nhost: file\nseed: 1\n")
    environ = {"OCTAVO_PORT": "2", "OCTAVO_HOST": "variable", "OCTAVO_CONFIG": str(file)}
    config = load({"port": "3"}, environ)
    assert (config.port, config.host, config.seed, config.block_size) == (3, "variable", 1, 16)


def test_an_empty_variable_counts_as_absent() -> None:
    assert load({}, {"OCTAVO_PORT": ""}).port == 8000


def test_kubernetes_service_links_are_not_the_port() -> None:
    assert load({}, {"OCTAVO_PORT": "tcp://10.0.0.1:8000"}).port == 8000


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"port": "eighty"}, "--port: invalid value 'eighty': expected a whole number"),
        ({"port": "65536"}, "--port: 65536 is above the maximum of 65535"),
        ({"port": "-1"}, "--port: -1 is below the minimum of 0"),
        ({"port": "1e3"}, "expected a whole number"),
        ({"dtype": "bfloat61"}, "--dtype: 'bfloat61' is not one of .* Did you mean bfloat16"),
        ({"gpu_memory_utilization": "nan"}, "expected a number"),
        ({"shutdown_timeout": "inf"}, "expected a number"),
        ({"kv_cache_memory_bytes": "4 bananas"}, "expected a size"),
        ({"max_model_len": "long"}, "expected a whole number"),
        ({"device": "tpu"}, "--device: 'tpu' is not auto, cpu, cuda"),
        ({"device": "cuda:x"}, "--device"),
        ({"ssl_keyfile": "k"}, "must be given together"),
        ({"tensor_parallel_size": "2"}, "one device"),
        (
            {
                "enable_chunked_prefill": "no",
                "max_model_len": "4096",
                "max_num_batched_tokens": "2048",
            },
            "needs --max-num-batched-tokens of at least --max-model-len",
        ),
    ],
)
def test_faults_name_the_flag(flags: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(flags, {})


def test_faults_name_the_variable_or_the_key(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"OCTAVO_MAX_NUM_SEQS: 0 is below the minimum"):
        load({}, {"OCTAVO_MAX_NUM_SEQS": "0"})
    file = tmp_path / "c.yaml"
    file.write_text("max-num-seqs: []\n")
    with pytest.raises(ConfigError, match=r"c\.yaml: max-num-seqs: invalid value"):
        load({}, {}, file)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prot: 80\n", "unknown key 'prot'.* Did you mean port"),
        ("- port\n", "must hold keys and values"),
        ("port: [\n", r"not valid YAML \(line"),
        ("port: !!python/object/apply:os.system ['true']\n", "not valid YAML"),
        ("port: true\n", "port: invalid value True"),
    ],
)
def test_a_bad_file_is_refused(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load({}, {}, file)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        load({}, {}, tmp_path / "none.yaml")


def test_an_empty_file_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("# nothing\n")
    assert load({}, {}, tmp_path / "c.yaml") == ServeConfig()


@pytest.mark.parametrize(
    ("text", "value"),
    [("0", 0), ("123", 123), ("4k", 4000), ("4K", 4000), ("4KiB", 4096), ("2GiB", 2 << 30),
     ("2gb", 2 * 10**9), ("500 MB", 500 * 10**6), (7, 7)],
)  # fmt: skip
def test_sizes(text: object, value: int) -> None:
    assert parse_size(text) == value


@pytest.mark.parametrize("text", ["", "k", "-1", "1.5g", "4x", "4kk", "٣", True, None])
def test_what_is_no_size(text: object) -> None:
    with pytest.raises(ValueError):
        parse_size(text)


def test_lengths_and_lists() -> None:
    assert [parse_length(t) for t in ("auto", "8192", "8k", "32K")] == [0, 8192, 8192, 32768]
    assert parse_list("a, b,,c") == ("a", "b", "c")
    assert parse_list(["a", 1]) == ("a", "1")


def test_the_printed_configuration_is_a_configuration_file(tmp_path: Path) -> None:
    config = ServeConfig(model="m", port=1, served_model_name=("a", "b"), enforce_eager=True)
    file = tmp_path / "c.yaml"
    file.write_text(as_yaml(config))
    assert load({}, {}, file) == config


def test_the_printed_configuration_hides_keys() -> None:
    assert "hunter2" not in as_yaml(ServeConfig(api_key=("hunter2",)))
    with pytest.raises(ConfigError) as fault:
        ServeConfig(api_key=({"hunter2": 1},))
    assert "hunter2" not in str(fault.value)


def test_keys_come_from_flag_and_file(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("two\n\n three \n")
    config = ServeConfig(api_key=("one",), api_key_file=str(file))
    assert config.api_keys() == ("one", "two", "three")
    file.write_text("\n")
    with pytest.raises(ConfigError, match="holds no key"):
        config.api_keys()
    file.unlink()
    with pytest.raises(ConfigError, match="cannot read"):
        config.api_keys()


def test_a_configuration_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        ServeConfig().port = 1  # type: ignore[misc]


def test_the_service_managers_socket_is_taken_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "@octavo")
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    found = take_notify_socket()
    assert found is not None
    assert (found.path, found.watchdog_s) == ("@octavo", 30.0)
    assert take_notify_socket() is None
