"""The models of the presets: one member of the family each. `hqvae.presets` adds data and training.

The `-paper` models are as near to the papers as is known (docs/theory.md has the table): codes
~ N(0, I), s² = 1 + exp θ started at 21, injection by concatenation, no beam, no progressive term.
"""

from dataclasses import fields, replace
from typing import Any

from hqvae.errors import InputError, nearest_name
from hqvae.likelihood import SpectralConfig
from hqvae.nets import ConvConfig, MLPConfig, WaveConvConfig
from hqvae.quantize import GumbelSoftmaxConfig, KMeansInit, NearestCodeConfig, RandomInit

from .config import HQVAEConfig, LevelConfig

_ONE = (LevelConfig(stride=4, codebook_size=512),)
_TWO = (LevelConfig(stride=8, codebook_size=512), LevelConfig(stride=4, codebook_size=512))
_DEEP = (LevelConfig(stride=4, layers=4, codebook_size=256),)
_DEEP_SHARED = (replace(_DEEP[0], shared_codebook=True),)
_HYBRID = (
    LevelConfig(stride=8, layers=2, codebook_size=256),
    LevelConfig(stride=4, layers=2, codebook_size=256),
)
_MEL = LevelConfig(stride=4, layers=4, codebook_size=8)
_CODEC = LevelConfig(stride=128, layers=8, codebook_size=256)  # 8 kbit/s at 16 kHz
_CODEC_HYBRID = (
    LevelConfig(stride=512, layers=4, codebook_size=256),
    LevelConfig(stride=128, layers=7, codebook_size=256),
)
_RESTART = NearestCodeConfig(restart=True)
# From k-means after pretraining nearest codes need no posterior: experiments/posterior.
_NEAREST = NearestCodeConfig(restart=True, init=KMeansInit())
_NEAREST_STACK = replace(_NEAREST, beta=0.025)
_PAPER = GumbelSoftmaxConfig(init=RandomInit(s2=21.0), variance="one_plus_exp")
_AUDIO = HQVAEConfig(
    channels=1, axes=1, net=WaveConvConfig(), spectral=SpectralConfig(weight=1.0, rate=16_000)
)
# Narrow codes tell items apart that are nearly equal, and wide ones explain more. With 8 dimensions
# 97 and 94 % of the products of two catalogues have an ID of their own (experiments/items.py).
_IDS = LevelConfig(stride=1, layers=4, codebook_size=256, dim=8)
_VECTORS = HQVAEConfig(channels=0, axes=0, net=MLPConfig(encoder_blocks=0), levels=(_IDS,))
_SERIES = HQVAEConfig(
    channels=0,
    axes=1,
    net=ConvConfig(widths=(64, 128), dilations=(1, 3)),
    levels=(LevelConfig(stride=4, layers=4, codebook_size=256, dim=32),),
)

MODELS: dict[str, HQVAEConfig] = {
    # Nothing pays for the prior in training, and `encode` has any rate: experiments/posterior.
    "vqvae": HQVAEConfig(levels=_ONE, quantizer=_NEAREST, prior="learned"),
    # Without the progressive term the coarse levels of injected hierarchies are unused.
    "vqvae2": HQVAEConfig(levels=_TWO, quantizer=_NEAREST_STACK, progressive=1.0, prior="learned"),
    "rqvae": HQVAEConfig(levels=_DEEP, quantizer=_NEAREST_STACK, beam_size=8, prior="learned"),
    "sqvae": HQVAEConfig(levels=_ONE, prior="learned"),
    "sqvae2": HQVAEConfig(levels=_TWO, progressive=1.0, prior="learned"),
    "rsqvae": HQVAEConfig(levels=_DEEP, beam_size=8, prior="learned"),
    # With more layers a little of it has the coarse ones carry as much, and costs less fidelity.
    "hqvae": HQVAEConfig(levels=_HYBRID, progressive=0.1, beam_size=8, prior="learned"),
    # The same on log-mel spectra: latents of 20 × 86, small codebooks.
    "sqvae-mel": HQVAEConfig(levels=_ONE, channels=1),
    "rsqvae-mel": HQVAEConfig(levels=(_MEL,), channels=1),
    "rqvae-mel": HQVAEConfig(
        levels=(replace(_MEL, shared_codebook=True),), channels=1, quantizer=_RESTART
    ),
    # The same on waveforms, with log spectra in the objective.
    "rsqvae-audio": replace(_AUDIO, levels=(_CODEC,)),
    "rqvae-audio": replace(
        _AUDIO, levels=(replace(_CODEC, shared_codebook=True),), quantizer=_RESTART
    ),
    "hqvae-audio": replace(_AUDIO, levels=_CODEC_HYBRID, progressive=1.0),
    # Vectors, one code per layer: semantic IDs.
    "sqvae-vector": replace(_VECTORS, levels=(replace(_IDS, layers=1, codebook_size=512),)),
    "rsqvae-vector": replace(_VECTORS, beam_size=8),
    "rqvae-vector": replace(_VECTORS, quantizer=_RESTART),
    # Series of several channels.
    "rsqvae-series": replace(_SERIES, beam_size=8),
    # As the papers have them.
    "vqvae-paper": HQVAEConfig(levels=_ONE, quantizer=NearestCodeConfig(), likelihood="mse"),
    "vqvae2-paper": HQVAEConfig(
        levels=_TWO, quantizer=NearestCodeConfig(), likelihood="mse", injection="concat"
    ),
    "sqvae-paper": HQVAEConfig(levels=_ONE, quantizer=_PAPER),
    "sqvae2-paper": HQVAEConfig(levels=_TWO, quantizer=_PAPER, injection="concat"),
    "rsqvae-paper": HQVAEConfig(levels=_DEEP, quantizer=_PAPER),
    "hqvae-paper": HQVAEConfig(levels=_HYBRID, quantizer=_PAPER, injection="concat"),
    "rqvae-paper": HQVAEConfig(levels=_DEEP_SHARED, quantizer=_RESTART, likelihood="mse"),
}


def model_preset(name: str, **changes: Any) -> HQVAEConfig:
    """The model of a preset, with `changes` to fields of its config.

    Raises InputError for a preset or field that does not exist, with the nearest.
    """
    if name not in MODELS:
        raise InputError(f"preset {name!r} does not exist; {nearest_name(name, MODELS)}")
    known = [field.name for field in fields(HQVAEConfig)]
    for field in changes:
        if field not in known:
            raise InputError(f"HQVAEConfig has no field {field!r}; {nearest_name(field, known)}")
    return replace(MODELS[name], **changes)
