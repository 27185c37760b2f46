#!/bin/sh
# sh studies/gpu.sh [cuda|cpu] [DATA]: what a GPU can tell, in at most eight minutes.
#
# The tests that need one; each mechanism and whole network beside its official form, with the share
# of the card's matrix products, in float32, bfloat16 and compiled; which form is best there (UN-EPT's
# bags or grid_sample, PSANet's stream or view, PySA's cell space or levels); then training on CamVid,
# the folder DATA, for as long as is left, saved on the way: again, it goes on from its checkpoint.
# Each part has its seconds and may be cut off: the others run all the same. `cpu` is for trying it.
# Of PyTorch it needs one that sees the card, in .venv or as PYTHON=...
device=${1:-cuda} data=${2:-data/camvid} python=${PYTHON:-.venv/bin/python}
start=$(date +%s) out=runs/gpu

part() {  # part SECONDS WORD...: run a command, cut off after so many seconds, or at eight minutes
    left=$((480 - $(date +%s) + start))
    seconds=$1; shift
    [ "$seconds" -lt "$left" ] || seconds=$left
    [ "$seconds" -gt 0 ] || return 0
    printf '\n$ %s\n' "$*"
    timeout -s INT -k 10 "$seconds" "$@" || echo "(ended with code $?)"
}

part 60 "$python" -m pytest -q tests/test_cuda.py
for precision in float32 bfloat16; do
    for paper in pysa unept pan psanet lrformer; do
        part 22 "$python" -m tests.bench $paper --device "$device" --precision $precision $BENCH
    done
done
compiled() {  # compiled PAPER CASE: one case alone, each form takes its time to compile
    part 40 "$python" -m tests.bench "$1" --case "$2" --device "$device" --precision bfloat16 \
        --compile $BENCH
}
compiled pysa "1 x 512 x 64 x 64"
compiled unept "UN-EPT"
compiled pan "ResNet-34, 512 px"
compiled psanet "30 x 30"
compiled lrformer "LRFormer-T, 512 px"
if [ -d "$data" ]; then
    resume=; [ ! -e $out/last.pt ] || resume=--resume
    part 480 "$python" train.py --paper pysa --preset resnet50 --dataset camvid --data "$data" \
        --device "$device" --precision bfloat16 --out $out $resume
fi
