#!/usr/bin/env bash
# The evidence of CIFAR-10 and CIFAR-100 with the papers' networks, on one GPU, in one call of SECONDS.
#
#     bash benchmarks/evidence_gpu.sh DIR SECONDS [OUT]      # DIR/cifar10/*.parquet, DIR/cifar100/*.parquet
#
# Our box and the unprotected teacher come first, then the other rows. What is finished is in OUT/evidence-*.json
# (docs/results), from where the next call goes on. WORKERS: processes for each data set, half the cores by default.
set -u
cd "$(dirname "$0")/.." || exit 2
root=${1:?the folder with the data}; end=${2:?how many seconds}; out=${3:-docs/results}
workers=${WORKERS:-$(($(nproc) / 2))}
mkdir -p "$out"
# Processes of one GPU that run at once, not in turn: a step of a small network fills little of it.
command -v nvidia-cuda-mps-control > /dev/null && nvidia-cuda-mps-control -d

one() {
    for rows in "--rows none,decoy" ""; do
        left=$((end - SECONDS))
        [ $left -gt 25 ] || break
        OMP_NUM_THREADS=1 "${PYTHON:-python3}" benchmarks/evidence.py --data "$1" --data-root "$root" $rows \
            --workers "$workers" --minutes "$(awk "BEGIN {print $left / 60}")" --out "$out/evidence-$1.json"
    done > "$out/evidence-$1.log" 2>&1
}

one cifar10-gpu &
one cifar100-gpu &
wait
tail -n 3 "$out"/evidence-*-gpu.log
