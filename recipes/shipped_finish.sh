#!/usr/bin/env bash
# From trained weights to what ships and what is said about it. Called by shipped.sh.
set -euo pipefail
cd "$(dirname "$0")/.."
run="uv run --no-sync"
$run deepgalaxy index --model work/shipped/model.safetensors --data work/wide2.h5 --data work/light/wide3.h5 \
    --data work/wide4.h5 --data work/light/wide5.h5 -o work/references --images 48000 --no-calibration
# Error bars, and how unusual an unseen encounter may be, from encounters that were not trained on.
$run deepgalaxy index --model work/shipped/model.safetensors --references work/references --data work/wide7.h5 -o work/library
cp work/library/model.safetensors work/library/library.h5 src/deepgalaxy/shipped/
$run deepgalaxy evaluate --data work/test.h5 --images 3000 --json work/library/evaluation.json \
    --report work/library/evaluation
$run python scripts/model_card.py work/library/evaluation.json > docs/model_card.md
$run python scripts/readme_figures.py work/library/evaluation.json
$run python scripts/latent_figures.py work/test docs
$run deepgalaxy predict examples/mock_1.fits --redshift 0.02 --report work/story
cp work/story/mock_1_story.png docs/story.png
