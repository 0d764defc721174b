#!/usr/bin/env bash
# The first ten minutes on a new GPU: what works, what it costs, what differs from a CPU. One JSON file, one page of text.
#   scripts/first_gpu.sh [OUT] [SECTION ...]        PYTHON=... chooses the interpreter, LIMIT=... seconds of a section
set -u
cd "$(dirname "$0")/.."
OUT=${1:-runs/first_gpu}
shift || true
export PYTHONPATH=.:${PYTHONPATH:-} HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false PYTHONUNBUFFERED=1
mkdir -p "$OUT"
nvidia-smi >"$OUT/nvidia-smi.txt" 2>&1 || true
for section in ${@:-machine equal quickstart fits graph-runs decode-embedded decode-tiny28 decode-SmolLM2-135M decode-Qwen2.5-1.5B graphs kernels resume deterministic \
  steps-1M steps-SmolLM2-135M steps-SmolLM2-135M-graphs steps-Qwen2.5-1.5B ranks vllm}; do
  timeout "${LIMIT:-240}" "${PYTHON:-python3}" scripts/first_gpu "$section" --out "$OUT" >"$OUT/$section.log" 2>&1 ||
    echo "$section ended with exit code $?, see $OUT/$section.log"
done
"${PYTHON:-python3}" scripts/first_gpu page --out "$OUT" | tee "$OUT/page.txt"
