#!/usr/bin/env bash
# SQ-VAE or VQ-VAE on CIFAR-10 beside published numbers: docs/calibration.md.
#     bash experiments/calibration.sh DATA sqvae|vqvae [EPOCHS [KEY=VALUE …]]
set -euo pipefail
data=${1:?the folder with CIFAR-10 as train.parquet and test.parquet}
preset=${2:?sqvae or vqvae}
epochs=${3:-50}
# Settings that are not the usual ones are part of the name.
name=$(IFS=-; echo "$preset-$epochs${4:+-}${*:4}")
run=runs/calibration-$name
settings="train.epochs=$epochs train.batch_size=32 train.lr=5e-3 train.warmup=500"
settings+=" phases.lr_log_s2=10 train.log_every=500 train.validate_every=3000"
resume=$([ -d "$run" ] && echo --resume || true)
hqvae train "$preset" --data "$data" --out "$run" $settings "${@:4}" $resume
hqvae evaluate "$run"
python experiments/summarise.py "$run" "experiments/calibration/$name"
python experiments/enlarged.py "$run" "experiments/calibration/$name.enlarged.json"
