#!/usr/bin/env bash
# SQ-VAE and VQ-VAE on CIFAR-10 beside published numbers: docs/calibration.md.   bash experiments/calibration.sh DATA [EPOCHS]
set -euo pipefail
data=${1:?the folder with CIFAR-10 as train.parquet and test.parquet}
epochs=${2:-50}
for preset in sqvae vqvae; do
    run=runs/calibration-$preset-$epochs
    settings="train.epochs=$epochs train.batch_size=32 train.lr=5e-3 train.warmup=500 train.lr_log_s2=10 train.log_every=500 train.validate_every=3000"
    resume=$([ -d "$run" ] && echo --resume || true)
    hqvae train "$preset" --data "$data" --out "$run" $settings $resume
    hqvae evaluate "$run"
    python experiments/summarise.py "$run" "experiments/calibration/$preset"
done
