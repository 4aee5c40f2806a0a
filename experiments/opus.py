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
from hqvae.chunks import decode_in_chunks, encode_in_chunks

from hqvae.data import open_data
from hqvae.figures import image_grid
from hqvae.metrics import AudioQuality
from hqvae.run import Run

CHUNK = 1 << 16
LEVELS = (
    1.0,
    0.98,
    0.96,
    0.9,
)  # libsndfile's, 1 the smallest: bits per second fall nearly linearly with it

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
        codes = encode_in_chunks(model, torch.from_numpy(samples)[None, None], CHUNK)
        decoded = torch.cat(
            list(decode_in_chunks(model, codes, CHUNK, layers, size=[len(samples)])), -1
        )[0, 0]
        bits = sum(
            c[0].numel() * np.log2(q.quantizer.codebook_size)
            for c, q in zip(codes[:layers], model.layers)
        )
        return decoded.clamp(-1, 1).numpy(), float(bits)

    return code


def measured(
    codec: Codec, sounds: list[np.ndarray], rate: int
) -> tuple[dict[str, float | None], np.ndarray]:
    """(figures over all files, the first file decoded)."""
    quality, bits, intelligible, first = AudioQuality(rate), 0.0, [], np.zeros(0, np.float32)
    for number, samples in enumerate(sounds):
        decoded, spent = codec(samples)
        decoded = np.pad(decoded, (0, max(0, len(samples) - len(decoded))))[: len(samples)]
        quality.add(torch.from_numpy(samples)[None, None], torch.from_numpy(decoded)[None, None])
        bits += spent
        first = decoded if number == 0 else first
        try:
            from pystoi import stoi

            intelligible.append(stoi(samples, decoded, rate))
        except ImportError:
            pass
    seconds = sum(map(len, sounds)) / rate
    figures = {
        "bits_per_second": bits / seconds,
        **quality.values(),
        "stoi": float(np.mean(intelligible)) if intelligible else None,
    }
    return figures, first


def main(run: Run, source: str, prefix: Path) -> None:
    config = run.config.data
    assert isinstance(config, AudioConfig)
    items = open_data(replace(config, source=source), 1, ("test",), 1)[1]["test"]
    left_out = {key for key, _ in items.left_out()}
    sounds = [
        items.read(i)[1][0].numpy() for i, key in enumerate(items.keys) if key not in left_out
    ]
    depth = sum(level.layers for level in run.config.model.levels)
    codecs = {
        f"{run.path.name}, {n} layer{'s' * (n > 1)}": ours(run, n)
        for n in sorted({1, depth // 2, depth})
        if n
    }
    codecs |= {f"Opus, level {level:g}": opus(level, config.rate) for level in LEVELS}
    rows, shown = {}, [("original", torch.from_numpy(sounds[0])[None, None])]
    for name, codec in codecs.items():
        rows[name], first = measured(codec, sounds, config.rate)
        shown.append(
            (
                f"{name}: {rows[name]['bits_per_second']:.0f} bit/s",
                torch.from_numpy(first)[None, None],
            )
        )
        print(
            name,
            {key: None if value is None else round(value, 3) for key, value in rows[name].items()},
            flush=True,
        )
    seconds = sum(map(len, sounds)) / config.rate
    result = {"files": len(sounds), "seconds": seconds, "rate": config.rate, "rows": rows}
    prefix.with_name(prefix.name + ".opus.json").write_text(json.dumps(result, indent=1) + "\n")
    image_grid([(label, items.picture(signal)) for label, signal in shown], spectra=True).savefig(
        prefix.with_name(prefix.name + ".opus.png")
    )


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(Run.open(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
