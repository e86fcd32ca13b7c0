#!/usr/bin/env bash
# Make the shipped weights and library: about 4 hours on two cores. Each step goes on where it was left.
set -euo pipefail
cd "$(dirname "$0")/.."
run="uv run --no-sync"
$run deepgalaxy simulate recipes/shipped_suite.yaml -o work/runs
$run deepgalaxy render work/runs -o work/shipped.h5 --config recipes/shipped_render.yaml
for recipe in shipped_first shipped; do
    OMP_NUM_THREADS=1 $run torchrun --nproc-per-node 2 -m deepgalaxy train recipes/$recipe.yaml
done
$run deepgalaxy index --model work/shipped/model.safetensors --data work/shipped.h5 -o work/shipped
cp work/shipped/model.safetensors work/shipped/library.h5 src/deepgalaxy/shipped/
$run deepgalaxy evaluate --json work/shipped/evaluation.json --report work/shipped/evaluation
$run python scripts/model_card.py work/shipped/evaluation.json > docs/model_card.md
$run python scripts/readme_figures.py work/shipped/evaluation.json
$run python scripts/make_examples.py
$run deepgalaxy predict examples/mock_1.fits --redshift 0.02 --report work/story
cp work/story/mock_1.png docs/story.png
