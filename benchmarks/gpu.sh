#!/usr/bin/env bash
# What is measured on a GPU, in one go of well under half an hour: training throughput and model-FLOP utilisation in
# bfloat16, milliseconds an image of every sampler at the shape of BiFlow-B/2, and the sequential inverse against one
# forward pass of its flow.  JSON lands in $1.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-docs/results/gpu}
export PYTHONPATH="$PWD/src${PYTHONPATH:+:$PYTHONPATH}"
for batch in 32 64; do
  python benchmarks/training_step.py --device cuda --recipe flowback_latent256 --batch "$batch" --compile --out "$out/batch_$batch"
done
python benchmarks/latency.py --recipe biflow_b2 --device cuda --batch 1 128 --compile --out "$out"
python benchmarks/inverse.py --shape --recipe itarflow_b2 --device cuda --out "$out"
