#!/usr/bin/env bash
# From trained weights to what ships and what is said about it. Called by shipped.sh.
set -euo pipefail
cd "$(dirname "$0")/.."
run="uv run --no-sync"
$run deepgalaxy index --model work/shipped/model.safetensors --data work/wide3.h5 --data work/wide2.h5 -o work/references \
    --images 48000 --no-calibration
# In wide4 larger discs go with larger mass ratios, in unseen with smaller ones (docs/suites.md): halves of both together.
for suite in wide4 unseen; do
    $run python scripts/halves.py work/$suite.h5 work/${suite}_test.h5 work/${suite}_bars.h5 2
done
# Error bars, and how unusual an unseen encounter may be, from some of the wide design that were not trained on.
$run deepgalaxy index --model work/shipped/model.safetensors --references work/references --data work/wide4_bars.h5 \
    --data work/unseen_bars.h5 -o work/library
cp work/library/model.safetensors work/library/library.h5 src/deepgalaxy/shipped/
$run deepgalaxy evaluate --data work/unseen_test.h5 --data work/wide4_test.h5 --images 3000 --json work/library/evaluation.json \
    --report work/library/evaluation
$run python scripts/model_card.py work/library/evaluation.json > docs/model_card.md
$run python scripts/readme_figures.py work/library/evaluation.json
$run python scripts/latent_figures.py work/unseen_test.h5 docs
$run deepgalaxy predict examples/mock_1.fits --redshift 0.02 --report work/story
cp work/story/mock_1_story.png docs/story.png
