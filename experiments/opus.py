"""A run's model of waveforms beside Opus, on whole files of a test folder.

With pystoi installed, intelligibility too. DATA/test has the files; writes PREFIX.opus.json and
PREFIX.opus.png.

python experiments/opus.py RUN DATA PREFIX
"""

import io
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import soundfile
import torch

from hqvae.data import AudioConfig, open_data
from hqvae.figures import image_grid
from hqvae.metrics import AudioQuality
from hqvae.run import Run
from hqvae.tiling import decode_chunked, encode_chunked

try:
    from pystoi import stoi
except ImportError:
    stoi = None

CHUNK = 1 << 16
# libsndfile's, 1 the smallest: bits per second fall nearly linearly with it.
LEVELS = (1.0, 0.98, 0.96, 0.9)

Codec = Callable[[np.ndarray], tuple[np.ndarray, float]]  # samples → (decoded samples, bits)


def opus(level: float, rate: int) -> Codec:
    """Opus as libsndfile writes it, the container's bytes counted in."""

    def code(samples: np.ndarray) -> tuple[np.ndarray, float]:
        file = io.BytesIO()
        soundfile.write(file, samples, rate, format="OGG", subtype="OPUS", compression_level=level)
        bits = 8.0 * len(file.getvalue())
        file.seek(0)
        return soundfile.read(file, dtype="float32")[0], bits

    return code


def ours(run: Run, layers: int) -> Codec:
    """The first layers of the run's model, whole files in chunks; bits without entropy coding."""
    model = run.load_model()

    def code(samples: np.ndarray) -> tuple[np.ndarray, float]:
        codes = encode_chunked(model, torch.from_numpy(samples)[None, None], CHUNK)
        pieces = decode_chunked(model, codes, CHUNK, layers, size=[len(samples)])
        decoded = torch.cat(list(pieces), -1)[0, 0]
        bits = sum(
            layer[0].numel() * np.log2(place.codebook_size)
            for layer, place in zip(codes[:layers], model.config.layers)
        )
        return decoded.clamp(-1, 1).numpy(), float(bits)

    return code


def measure(
    codec: Codec, recordings: list[np.ndarray], rate: int
) -> tuple[dict[str, float | None], np.ndarray]:
    """(figures over all files, the first file decoded)."""
    quality = AudioQuality(rate)
    total_bits = 0.0
    intelligibility = []
    decoded_files = []
    for samples in recordings:
        decoded, bits = codec(samples)
        decoded = np.pad(decoded, (0, max(0, len(samples) - len(decoded))))[: len(samples)]
        quality.add(torch.from_numpy(samples)[None, None], torch.from_numpy(decoded)[None, None])
        total_bits += bits
        decoded_files.append(decoded)
        if stoi is not None:
            intelligibility.append(stoi(samples, decoded, rate))
    seconds = sum(map(len, recordings)) / rate
    figures = {
        "bits_per_second": total_bits / seconds,
        **quality.values(),
        "stoi": float(np.mean(intelligibility)) if intelligibility else None,
    }
    return figures, decoded_files[0]


def main(run: Run, source: str, prefix: Path) -> None:
    config = run.config.data
    assert isinstance(config, AudioConfig)
    data = open_data(replace(config, source=source), 1, ("test",), 1)[1]["test"]
    left_out = {key for key, _ in data.left_out()}
    recordings = [
        data.read(i)[1][0].numpy() for i, key in enumerate(data.keys) if key not in left_out
    ]
    depth = len(run.config.model.layers)
    codecs = {
        f"{run.path.name}, {n} layer{'s' * (n > 1)}": ours(run, n)
        for n in sorted({1, depth // 2, depth})
        if n
    }
    codecs |= {f"Opus, level {level:g}": opus(level, config.rate) for level in LEVELS}
    rows = {}
    pictures = [("original", data.picture(torch.from_numpy(recordings[0])[None, None]))]
    for name, codec in codecs.items():
        rows[name], first = measure(codec, recordings, config.rate)
        label = f"{name}: {rows[name]['bits_per_second']:.0f} bit/s"
        pictures.append((label, data.picture(torch.from_numpy(first)[None, None])))
        rounded = {k: None if v is None else round(v, 3) for k, v in rows[name].items()}
        print(name, rounded, flush=True)
    seconds = sum(map(len, recordings)) / config.rate
    result = {"files": len(recordings), "seconds": seconds, "rate": config.rate, "rows": rows}
    prefix.with_name(prefix.name + ".opus.json").write_text(json.dumps(result, indent=1) + "\n")
    figure = image_grid(pictures, spectra=True)
    figure.savefig(prefix.with_name(prefix.name + ".opus.png"))


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(Run.open(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
