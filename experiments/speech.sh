#!/usr/bin/env bash
# A codec of waveforms trained on speech, beside Opus: docs/sound.md.
#     bash experiments/speech.sh DATA [STEPS]
set -euo pipefail
data=${1:?a folder of speech, with train/ and test/}
steps=${2:-10000}
run=runs/speech-$steps
settings="data.seconds=0.512 train.batch_size=8 train.steps=$steps train.log_every=100"
settings+=" train.validate_every=1000 train.validation_items=32"
resume=$([ -d "$run" ] && echo --resume || true)
hqvae train rsqvae-audio --data "$data" --out "$run" $settings $resume
hqvae evaluate "$run" --seconds 4.096
python experiments/summarise.py "$run" experiments/speech/rsqvae
python experiments/opus.py "$run" "$data" experiments/speech/rsqvae
