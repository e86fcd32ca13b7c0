#!/usr/bin/env bash
# Make the shipped weights and library: about 18 hours on two cores and, for the ninth and tenth part of the training, seven
# minutes on a GPU. Each step goes on where it was left.
set -euo pipefail
cd "$(dirname "$0")/.."
run="uv run --no-sync"
for suite in core wide wide2 wide3 wide4 wide5 wide6 wide7 test; do
    $run deepgalaxy simulate recipes/${suite}_suite.yaml -o work/$suite
    $run deepgalaxy render work/$suite -o work/$suite.h5 --config recipes/${suite}_render.yaml
done
mkdir -p work/light
for suite in wide3 wide5; do
    $run deepgalaxy render work/$suite -o work/light/$suite.h5 --config recipes/${suite}_light_render.yaml
done
workers=$(nvidia-smi -L 2>/dev/null | wc -l || true)  # one for each GPU, or two on the cores
[ "$workers" -gt 0 ] || workers=2
for recipe in shipped_first shipped_second shipped_third shipped_fourth shipped_fifth shipped_sixth shipped_seventh \
        shipped_eighth shipped_ninth shipped_tenth shipped_eleventh shipped_twelfth \
        shipped_thirteenth shipped_fourteenth shipped; do
    OMP_NUM_THREADS=1 $run torchrun --nproc-per-node $workers -m deepgalaxy train recipes/$recipe.yaml
done
exec bash recipes/shipped_finish.sh
