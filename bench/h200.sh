#!/usr/bin/env bash
# Every line of the tables of one GPU, in the form of bench/results/*-h200.md.
#
#   bench/h200.sh DIRECTORY [STAGE…]    default: all stages that need no file
#
# Stages: offline http open prompts start small quantized adapters; files (writes 16 GB). Models are
# made below DIRECTORY (dummy weights, 8B and 1B in size). Needs octavo and the Python packages of
# bench/make_model.py; `adapters` needs bench_step in $BENCH_STEP (see cuda/README.md).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly home=${1:?directory}
readonly dummy=(--load-format dummy --max-num-seqs 256 --no-enable-prefix-caching)
readonly offline=("${dummy[@]}" --max-model-len 16384 --max-num-batched-tokens 8192)
readonly url=http://127.0.0.1:8000
server=''

model() { # GEOMETRY NAME [flags]: makes it once
  [[ -e $home/$2/config.json ]] || python3 bench/make_model.py "$1" "$home/$2" "${@:3}" >/dev/null
}

run() {
  printf '\n== %4d s  %s\n' "$SECONDS" "$*"
  "$@" 2>&1 | grep -vE '^$'
}

start() {
  octavo serve "$@" --disable-log-requests >"$home/server.log" 2>&1 &
  server=$!
  trap stop EXIT
  until curl -sf "$url/health" >/dev/null; do
    kill -0 "$server" || { tail "$home/server.log" >&2; return 1; }
    sleep 0.1
  done
}

stop() {
  [[ -z $server ]] || { kill "$server" && wait "$server" || true; }
  server=''
}

load() {
  run octavo bench serve --url "$url" "$@"
}

offline() {
  model llama-3.1-8b 8b
  run octavo bench latency "$home/8b" "${offline[@]}" --repeats 1
  run octavo bench throughput "$home/8b" "${offline[@]}"
  run octavo bench throughput "$home/8b" "${offline[@]}" --fixed 1024,128 --num-requests 500
}

http() {
  model llama-3.1-8b 8b
  start "$home/8b" "${dummy[@]}" --max-model-len 16384
  load --concurrency 1 --num-requests 8
  load --concurrency 32 --num-requests 256
  load --concurrency 256 --num-requests 1024 --processes 2
  stop
}

open() {
  model llama-3.1-8b 8b
  for limit in auto 2048; do # as it is, and without a limit beside decodes
    start "$home/8b" "${dummy[@]}" --max-model-len 16384 --max-num-mixed-prefill-tokens "$limit"
    load --request-rate 40 --num-requests 600
    stop
  done
}

prompts() {
  model llama-3.1-8b 8b
  for limit in auto 2048; do
    start "$home/8b" --load-format dummy --max-num-seqs 256 --max-model-len 32768 \
      --max-num-mixed-prefill-tokens "$limit"
    run octavo bench prompts --url "$url"
    stop
  done
}

startup() {
  run octavo bench startup --runs 2 -- octavo serve "$@" --max-model-len 16384 --port '{port}'
}

files() {
  model llama-3.1-8b 8b-files --weights
  startup "$home/8b-files"
}

small() {
  model llama-3.2-1b 1b
  run octavo bench latency "$home/1b" "${offline[@]}" --repeats 1
  run octavo bench throughput "$home/1b" "${offline[@]}"
  start "$home/1b" "${dummy[@]}" --max-num-seqs 1024 --max-model-len 16384
  load --concurrency 1 --num-requests 8
  load --concurrency 32 --num-requests 256
  load --concurrency 256 --num-requests 1024 --processes 2
  load --concurrency 1024 --num-requests 4096 --processes 4
  stop
}

quantized() {
  local flags=(--load-format dummy --max-model-len 4096 --max-num-seqs 256 --max-num-batched-tokens 8192)
  for kind in awq fp8 fp8-block; do model llama-3.1-8b "8b-$kind" --quantization "$kind"; done
  model qwen3-30b-a3b 30b-a3b
  for name in 8b-fp8 8b-fp8-block 8b-awq 30b-a3b; do
    run octavo bench latency "$home/$name" "${flags[@]}" --batch 1,64 --prefill 512,2048 --repeats 1
  done
  run octavo bench throughput "$home/8b-fp8" "${flags[@]}" --fixed 1000,1000 --num-requests 512
}

adapters() {
  for geometry in 8b 8b-lora; do
    run "${BENCH_STEP:?bench_step}" "$geometry" 1 64
  done
}

mkdir -p "$home"
stages=("${@:2}")
[[ ${#stages[@]} != 0 ]] || stages=(offline http open prompts start small quantized adapters)
nvidia-smi --query-gpu=name,driver_version,clocks.max.sm --format=csv,noheader
for stage in "${stages[@]}"; do
  case $stage in
    start)
      model llama-3.1-8b 8b
      startup "$home/8b" --load-format dummy
      ;;
    offline | http | open | prompts | files | small | quantized | adapters) "$stage" ;;
    *) printf 'bench/h200.sh: unknown stage %s\n' "$stage" >&2; exit 2 ;;
  esac
done
