"""The rules of the house that a reader of the tree relies on, checked on the source text."""

from __future__ import annotations

import ast
import re
import tomllib
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "python" / "octavo"

# --- C++: which room may include which -----------------------------------------------------------

# A room may include itself, base, and whatever its arrows reach.
ARROWS = {
    "base": set(),
    "kv": {"base"},
    "sched": {"kv"},
    "backend": {"base"},
    "model": {"backend"},
    "cpu": {"backend"},
    "cuda": {"backend"},
    "checkpoint": {"base"},
    "runner": {"model", "cpu", "cuda"},
    "engine": {"sched", "runner", "kv"},
    "bindings": {"engine", "checkpoint"},
}
# Plain data that crosses every border; these headers may include only base and each other.
PLAIN_DATA = {"model/model_config.h", "sched/sampling_params.h", "sched/scheduled_batch.h"}
# Only the factory that picks a backend may name one.
BACKENDS = {"cpu", "cuda"}

INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.MULTILINE)


def cpp_sources() -> list[Path]:
    return sorted(
        f
        for room in ("cpp", "cuda")
        for pattern in ("*.h", "*.cc", "*.cu", "*.cuh")
        for f in (ROOT / room).rglob(pattern)
    )


def room_of(file: Path) -> str:
    relative = file.relative_to(ROOT)
    return "cuda" if relative.parts[0] == "cuda" else relative.parts[1]


def reachable(room: str) -> set[str]:
    reached, pending = {room, "base"}, [room]
    while pending:
        for target in ARROWS[pending.pop()] - reached:
            reached.add(target)
            pending.append(target)
    return reached


def test_every_cpp_room_has_an_arrow() -> None:
    rooms = {room_of(f) for f in cpp_sources()}
    assert rooms <= set(ARROWS)


def test_the_scheduler_knows_no_device() -> None:
    assert reachable("sched") == {"sched", "kv", "base"}


@pytest.mark.parametrize("file", cpp_sources(), ids=lambda f: str(f.relative_to(ROOT)))
def test_includes_follow_the_arrows(file: Path) -> None:
    allowed = reachable(room_of(file))
    for include in INCLUDE.findall(file.read_text()):
        target = include.split("/")[0]
        assert "/" in include, f'"{include}" is not rooted'
        assert target in allowed or include in PLAIN_DATA, include


@pytest.mark.parametrize("header", sorted(PLAIN_DATA))
def test_plain_data_stays_plain(header: str) -> None:
    for include in INCLUDE.findall((ROOT / "cpp" / header).read_text()):
        assert include in PLAIN_DATA or include.startswith("base/")


def test_only_the_bindings_know_python() -> None:
    for file in cpp_sources():
        if "pybind11" in file.read_text() or "Python.h" in file.read_text():
            assert room_of(file) == "bindings", file


def test_headers_are_guarded_by_pragma_once() -> None:
    for file in cpp_sources():
        if file.suffix in (".h", ".cuh"):
            assert "#pragma once" in file.read_text(), file


def test_the_library_neither_exits_nor_prints() -> None:
    banned = re.compile(
        r"\bstd::(?:abort|exit|quick_exit|terminate|cout|cerr)\b|\bf?printf\s*\(|\bputs\s*\("
        r"|(?<![\w.>:])_?exit\s*\("
    )
    for file in cpp_sources():
        assert not banned.findall(without_comments(file)), file


def without_comments(file: Path) -> str:
    """The code of a C++ file: no comments, no string contents."""
    return re.sub(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"', "", file.read_text(), flags=re.DOTALL)


# --- Python: which module may import which -------------------------------------------------------

ENGINE_OWNERS = {"octavo.engine.process", "octavo.engine.loader", "octavo.llm"}
PROCESS_SET_UP = {
    f"octavo.server.{name}"
    for name in ("arbiter", "assembly", "gunicorn_conf", "gunicorn_settings", "launch", "worker")
}


@cache
def python_sources() -> dict[str, Path]:
    """Module name to file, of the whole package."""
    modules = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return modules


@cache
def imports(module: str, *, lazy: bool = True) -> frozenset[str]:
    """The modules that `module` imports; with lazy=False only those that importing it loads.

    Imports under `if TYPE_CHECKING:` do not count: they never run.
    """
    found: set[str] = set()
    tree = ast.parse(python_sources()[module].read_text())

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.orelse:
                visit(child)
            return
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and not lazy:
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            found.add(node.module or "")
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(tree)
    return frozenset(found)


def names(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def loaded_by(module: str) -> set[str]:
    """Everything that importing `module` imports, through the package's own modules."""
    seen: set[str] = set()
    pending = [module]
    while pending:
        for target in imports(pending.pop(), lazy=False) - seen:
            seen.add(target)
            if target in python_sources():
                pending.append(target)
    return seen


@pytest.mark.parametrize("module", sorted(python_sources()))
def test_only_the_engine_process_and_llm_make_an_engine(module: str) -> None:
    """Others may ask the extension for facts (files, CPU features, a memory plan)."""
    makes = re.search(
        r"\b_core\.Engine\(|from octavo\._core import [^\n]*\bEngine\b",
        python_sources()[module].read_text(),
    )
    assert not makes or module in ENGINE_OWNERS


def test_the_server_reaches_the_engine_only_by_its_client() -> None:
    """The modules that set the processes up also know the supervisor; none knows the engine."""
    for module in (m for m in python_sources() if names(m, "octavo.server")):
        for target in imports(module):
            if target == "octavo.engine" or not names(target, "octavo.engine"):
                continue
            if module in PROCESS_SET_UP:
                inside = ("octavo.engine.process", "octavo.engine.loader", "octavo.engine.endpoint")
                assert not any(names(target, i) for i in inside), f"{module} imports {target}"
            else:
                assert names(target, "octavo.engine.client"), f"{module} imports {target}"


@pytest.mark.parametrize("room", ["server", "cli", "bench", "config", "errors", "sampling_params"])
def test_no_torch_outside_the_engine(room: str) -> None:
    for module in python_sources():
        if names(module, f"octavo.{room}"):
            heavy = {t for t in loaded_by(module) if t.split(".")[0] in ("torch", "transformers")}
            assert not heavy, f"{module}: {heavy}"
            assert not any(names(t, "torch") for t in imports(module)), module


def test_the_command_line_starts_light() -> None:
    """--version and --help load nothing of the server, the engine or the tokenizers."""
    module = "octavo.cli.main"
    assert module in python_sources()
    banned = ("falcon", "gunicorn", "gevent", "tokenizers", "jinja2", "huggingface_hub",
              "octavo._core", "octavo.server", "octavo.engine")  # fmt: skip
    loaded = loaded_by(module)
    assert not [t for t in loaded for b in banned if names(t, b)]


def test_the_lower_rooms_do_not_look_up() -> None:
    """errors and sampling_params import nothing of ours; engine and model know no HTTP."""
    for module in ("octavo.errors", "octavo.sampling_params", "octavo.version"):
        assert not [t for t in imports(module) if names(t, "octavo")], module
    for module in python_sources():
        if names(module, "octavo.engine") or names(module, "octavo.model"):
            up = [t for t in imports(module) if names(t, "octavo.server") or names(t, "octavo.cli")]
            assert not up, f"{module}: {up}"
            assert not [t for t in imports(module) if t.split(".")[0] in ("falcon", "gunicorn")]


def test_only_config_reads_the_environment() -> None:
    """Our own variables have one reader; a child's environment is built there too."""
    for module, file in python_sources().items():
        if module == "octavo.config":
            continue
        own = re.findall(r"(?:environ|getenv)[^\n]*[\"']OCTAVO_\w+", file.read_text())
        assert not own, f"{module}: {own}"


# --- Loading: no code from data ------------------------------------------------------------------

CODE_FROM_DATA = re.compile(
    r"\bimport\s+(?:pickle|cPickle|marshal|shelve|dill|joblib)\b|\bpickle\.loads?\b|\btorch\.load\b"
    r"|(?<![\w.])(?:eval|exec)\s*\(|\byaml\.(?:load|unsafe_load|full_load)\b|trust_remote_code"
    r"|\b__import__\s*\(|\bos\.system\s*\(|shell\s*=\s*True"
)


@pytest.mark.parametrize("module", sorted(python_sources()))
def test_no_code_comes_from_data(module: str) -> None:
    assert not CODE_FROM_DATA.findall(python_sources()[module].read_text())


@pytest.mark.parametrize(
    "bad",
    ["import pickle", "torch.load(p)", "eval(x)", "exec(x)", "yaml.load(f)", "trust_remote_code=1"],
)
def test_the_pattern_finds_what_it_bans(bad: str) -> None:
    assert CODE_FROM_DATA.search(f"x = 1\n{bad}\n")


@pytest.mark.parametrize("good", ["m.eval()", "re.compile(x)", "yaml.safe_load(f)", "evaluate(x)"])
def test_the_pattern_leaves_the_rest(good: str) -> None:
    assert not CODE_FROM_DATA.search(good)


# --- Size ----------------------------------------------------------------------------------------

MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 60
MAX_MEDIAN_LINES = 10


def function_lengths(file: Path) -> dict[str, int]:
    """Lines of each function, its docstring and its nested functions' lines left out."""
    lengths = {}
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lengths[f"{file.name}:{node.name}"] = body_lines(node)
    return lengths


def body_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    own = (node.end_lineno or node.lineno) - node.lineno + 1
    if ast.get_docstring(node) is not None:
        doc = node.body[0]
        own -= (doc.end_lineno or doc.lineno) - doc.lineno + 1
    nested = (n for n in node.body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))
    return own - sum(body_lines(n) for n in nested)


def test_files_stay_readable() -> None:
    files = [*cpp_sources(), *python_sources().values(), *(ROOT / "tests").rglob("*.py")]
    files += (ROOT / "tests").rglob("*_test.cc")
    lines = {str(f.relative_to(ROOT)): len(f.read_text().splitlines()) for f in files}
    assert not {name: n for name, n in lines.items() if n > MAX_FILE_LINES}


def test_python_functions_stay_short() -> None:
    lengths: dict[str, int] = {}
    for file in python_sources().values():
        lengths |= function_lengths(file)
    assert not {name: n for name, n in lengths.items() if n > MAX_FUNCTION_LINES}
    assert sorted(lengths.values())[len(lengths) // 2] <= MAX_MEDIAN_LINES


# --- One fact, one place -------------------------------------------------------------------------


def test_the_version_is_the_same_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    version = project["version"]
    scope: dict[str, ast.expr] = {}
    for node in ast.parse((PACKAGE / "version.py").read_text()).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            scope[node.targets[0].id] = node.value
    assert ast.literal_eval(scope["__version__"]) == version
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text()
    assert f'appVersion: "{version}"' in (ROOT / "deploy/helm/octavo/Chart.yaml").read_text()


def test_requirements_are_in_the_tested_set() -> None:
    """Every direct requirement has a pin in constraints.txt that satisfies it."""
    from packaging.requirements import Requirement  # noqa: PLC0415
    from packaging.utils import canonicalize_name  # noqa: PLC0415

    pins = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            name, _, version = line.partition("==")
            pins[canonicalize_name(name)] = version
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())
    optional = data["project"]["optional-dependencies"].values()
    wanted = [*data["project"]["dependencies"], *(r for extra in optional for r in extra)]
    for requirement in map(Requirement, wanted):
        pin = pins.get(canonicalize_name(requirement.name))
        assert pin is not None, requirement.name
        assert requirement.specifier.contains(pin, prereleases=True), f"{requirement}: {pin}"


@pytest.mark.parametrize(
    "name",
    ["README.md", "CHANGELOG.md", "LICENSE", "SECURITY.md", "cpp/README.md", "bench/README.md",
     "bench/results/README.md", "deploy/README.md"],
)  # fmt: skip
def test_the_promised_text_is_there(name: str) -> None:
    assert len((ROOT / name).read_text().split()) > 50
