"""HQVAE: features up, codes down, signal out.

    x → h → z_e → codes → z → latent → x_hat

Shape key: **B** batch, **C** signal channels, **D** width of a code, **\\*S** space (H W, or T;
vectors have none), **K** codebook size, **L** layers, **R** levels.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, SupportsIndex

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hqvae.data import DataConfig
from hqvae.nets import Decoder, Encoder
from hqvae.objective import ElboSample, Losses
from hqvae.quantize import Noise
from hqvae.topdown import (
    Continuous,
    FirstLayers,
    GivenCodes,
    Level,
    NearestCodes,
    PosteriorSample,
    RelaxedSample,
    init_codebooks,
    init_scale,
    walk,
)

from . import pretrained
from .build import make_levels
from .codes import codes_by_level, signal_size
from .config import HQVAEConfig
from .cost import Objective, square_error
from .portable import Portable
from .presets import model_preset
from .probe import as_features, check_decoder
from .signals import as_signal, check_shape, limit_of


class HQVAE(Portable):
    """Hierarchically quantized autoencoder; `config` says which member of the family.

    Args:
        config: levels, quantizer, objective, networks
        encoder: in place of ours: x [B, C, *S] → features of every level, coarse first,
            [B, W_r, *S/stride_r] each (one level: the tensor itself will do)
        decoder: in place of ours: latent of the finest level [B, D, *S/stride] → x̂ [B, C, *S]
        data: what signals are made of, for `preprocess`; a trained model has it from its run

    Signals are floats in [−1, 1]. Raises ValueError for networks whose sizes do not fit the
    levels. Source: HQ-VAE (Takida et al., TMLR 2024, arXiv 2401.00365).

    >>> model = HQVAE(HQVAEConfig(levels=(LevelConfig(stride=8), LevelConfig(stride=4))))
    >>> codes = model.eval().encode(torch.zeros(1, 3, 32, 32))
    >>> [tuple(c.shape) for c in codes], tuple(model.decode(codes).shape)
    ([(1, 4, 4), (1, 8, 8)], (1, 3, 32, 32))
    """

    levels: Sequence[Level]  # an nn.ModuleList

    def __init__(
        self,
        config: HQVAEConfig = HQVAEConfig(),
        encoder: nn.Module | None = None,
        decoder: nn.Module | None = None,
        data: DataConfig | None = None,
    ):
        super().__init__(config, data)
        if not config.channels:
            raise ValueError("channels=0: expected as many as the arrays have that it is for")
        strides = [level.stride for level in config.levels]
        finest = config.levels[-1]
        net = config.net
        sides = (config.axes, config.channels)
        if encoder is None:
            encoder = net.init(Encoder(*sides, strides, net))
        if decoder is None:
            decoder = net.init(Decoder(*sides, finest.dim, finest.stride, net))
        self.encoder = encoder
        self.levels = nn.ModuleList(make_levels(config, encoder))  # type: ignore[assignment]
        check_decoder(config, decoder)
        self.decoder = decoder
        self.objective = Objective(config)

    # ------------------------------------------------------------------------- objective

    def forward(
        self,
        x: Float[Tensor, "B C *S"],
        temperature: Tensor | float = 1.0,
        noise: Noise | None = None,
        sigma2: Tensor | None = None,
        features: Sequence[Tensor] | None = None,
        quantize: bool = True,
        mean_sigma2: Tensor | None = None,
    ) -> Losses:
        """The objective's terms for a batch of signals in [−1, 1].

        Args:
            x: signals
            temperature: τ of the relaxed samples
            noise: place in the stream of noise; drawn from torch's generator when not given
            sigma2: `Losses.sigma2` of the global batch, when it is known from a first pass
                (accumulated batches)
            features: `features(x)`, where they are known already
            quantize: False for the autoencoder by itself: latents pass as they are, all codes are
                0, latent terms are zero
            mean_sigma2: running mean of σ² over batches, by which gradients weigh this one; 0
                before the first. Not given: its own σ², as in the papers
        """
        if noise is None:  # evaluation uses none
            noise = Noise.draw() if self.training else Noise(torch.tensor(0))
        features = features or self.features(x)
        source = RelaxedSample(features, noise, temperature) if quantize else Continuous(features)
        latent, outputs = walk(self.levels, source)
        x_hat = self._reconstruct(latent, x.shape[2:])
        objective = self.objective
        spectra = objective.spectra(x)
        errors = [objective.distortions(x, spectra, x_hat)]
        for kept in objective.prefixes(noise, x.device) if self.training else []:
            coarser, _ = walk(self.levels, FirstLayers(outputs, kept))
            coarser_hat = self._reconstruct(coarser, x.shape[2:])
            errors.append(objective.distortions(x, spectra, coarser_hat))
        distortions = torch.stack(errors)
        if sigma2 is None:
            sigma2 = objective.sigma2(distortions, x[0].numel(), over_ranks=self.training)
        return objective.losses(x_hat, distortions, sigma2, self.levels, outputs, mean_sigma2)

    @torch.no_grad()
    def elbo_sample(
        self, x: Float[Tensor, "B C *S"], noise: Noise, features: Sequence[Tensor] | None = None
    ) -> ElboSample:
        """One draw of the true evidence bound.

        Z̃ has its Gaussian noise, Z is a hard sample, every constant is kept. `features` are
        `features(x)`, where they are known already.
        """
        latent, outputs = walk(self.levels, PosteriorSample(features or self.features(x), noise))
        quantized = [output.quantized for output in outputs]
        kl_continuous = torch.stack([q.latent_loss for q in quantized]).sum(0)
        entropy = torch.cat([q.entropy for q in quantized], 1).sum(1)
        nats = self.objective.rate(quantized).sum(1) + kl_continuous - entropy
        return ElboSample(square_error(x, self._reconstruct(latent, x.shape[2:])), nats)

    # ----------------------------------------------------------------------------- codes

    @torch.no_grad()
    def encode(self, x: Any, rate_weight: float | None = None) -> tuple[Int[Tensor, "B ..."], ...]:
        """L tensors of nearest codes `[B, *S_l]`, coarse to fine; the same in either mode.

        `x` are signals [B, C, *S], a tensor or an array: floats in [−1, 1], uint8 pictures of
        0 … 255, or int16 sounds. Raises ValueError for other types, shapes and values. Batches of
        signals of several lengths: `hqvae.tiling.encode_padded`. `rate_weight` is that of a learned
        prior, in place of the model's: the higher it is, the fewer bits codes have.
        """
        limit = limit_of(self.config, self.data)
        x = as_signal(x, self.config, next(self.parameters()), limit)
        outputs = walk(self.levels, NearestCodes(self.features(x), rate_weight))[1]
        return tuple(codes for output in outputs for codes in output.quantized.codes.unbind(1))

    @torch.no_grad()
    def decode(
        self,
        codes: Sequence[Any] | Tensor,
        layers: SupportsIndex | None = None,
        size: Sequence[SupportsIndex] | None = None,
    ) -> Float[Tensor, "B C ..."]:
        """Signals `[B, C, *S]` from the codes of all layers, or of the first `layers` ones.

        `codes` are L arrays `[B, *S_l]` of any integer type, torch or numpy. `size` is the signals'
        own where it is no multiple of the coarsest stride. Raises ValueError for a wrong number of
        layers, shapes that do not fit each other, a code outside its codebook, or a size that the
        codes cannot have.
        """
        by_level = codes_by_level(self.config, codes, layers)
        longest = [side * self.stride for side in by_level[0].shape[2:]]
        size = None if size is None else signal_size(size, longest)
        latent, _ = walk(self.levels, GivenCodes(by_level))
        return self._reconstruct(latent, size)

    # ----------------------------------------------------------------------------- verbs

    @torch.no_grad()
    def init_scale(self, x: Float[Tensor, "B C *S"]) -> None:
        """Scale every level's Z̃ to mean 0 and variance 1 on these signals; changes state."""
        init_scale(self.levels, self.features(x))

    @torch.no_grad()
    def init_codebooks(
        self, x: Float[Tensor, "B C *S"], noise: Noise, at_once: int = 32, steps: int = 1
    ) -> None:
        """Start codebooks and s² from the signals of `steps` steps; changes state.

        `at_once` of them are encoded at a time.
        """
        init_codebooks(self.levels, self._features_of(x, at_once), noise, steps)

    @torch.no_grad()
    def refine_codebooks(
        self, x: Float[Tensor, "B C *S"], noise: Noise, at_once: int = 32, steps: int = 1
    ) -> None:
        """Move codebooks to the means of what is nearest to them; arguments as above."""
        init_codebooks(self.levels, self._features_of(x, at_once), noise, steps, refine=True)

    def use_nearest(self) -> None:
        """Replace the posterior by its limit s² → 0, nearest codes; changes state.

        Codebooks, networks, likelihood and config stay what they are. Nothing happens where codes
        are the nearest ones already.
        """
        depths = [level.layers for level in self.config.levels]
        for level in self.levels:
            level.quantizer.use_nearest(depths)

    @torch.no_grad()
    def update_codebooks(self, z_e: Sequence[Tensor], codes: Sequence[Tensor], noise: Noise) -> int:
        """Move codebooks of running averages with what `Losses` says was quantized.

        Returns how many codes were restarted. Codebooks that learn by gradient stay.
        """
        by_level = zip(self.levels, z_e, codes_by_level(self.config, codes))
        return sum(
            level.quantizer.update(latents, of_level, noise.fold(index))
            for index, (level, latents, of_level) in enumerate(by_level)
        )

    # ----------------------------------------------------------------------------- parts

    @property
    def posterior(self) -> str:
        """How codes are chosen now: gumbel_softmax, nearest_code or external."""
        return self.levels[0].quantizer.posterior.name

    @property
    def stride(self) -> int:
        """Of the coarsest level: signals are padded to a multiple of it."""
        return self.config.levels[0].stride

    def features(self, x: Float[Tensor, "B C *S"]) -> tuple[Tensor, ...]:
        """h^r of every level, coarse first.

        A signal whose size is no multiple of the coarsest stride is padded by repeating its last
        samples. Raises ValueError for other channels or axes than the model's.
        """
        check_shape(x, self.config)
        missing = [(-size) % self.stride for size in x.shape[2:]]
        if any(missing):
            pads = [side for m in reversed(missing) for side in (0, m)]
            x = nn.functional.pad(x, pads, mode="replicate")
        return as_features(self.encoder(x))

    def _features_of(self, x: Tensor, at_once: int) -> list[Tensor]:
        parts = [self.features(part) for part in x.split(at_once)]
        return [torch.cat(of_level) for of_level in zip(*parts)]

    def _reconstruct(self, latent: Tensor, size: Sequence[int] | None) -> Tensor:
        x_hat = self.decoder(latent)
        crop = (slice(None), slice(None), *[slice(side) for side in size or x_hat.shape[2:]])
        return x_hat[crop]

    # --------------------------------------------------------------------------- on disk

    @classmethod
    def from_preset(cls, name: str, **changes: Any) -> "HQVAE":
        """An untrained model of a preset, with `changes` to fields of its `HQVAEConfig`.

        Raises InputError for a preset or field that does not exist.

        >>> HQVAE.from_preset("rsqvae", channels=1).config.levels[0].layers
        4
        """
        return cls(model_preset(name, **changes))

    @classmethod
    def from_pretrained(
        cls, source: str | Path, encoder: nn.Module | None = None, decoder: nn.Module | None = None
    ) -> "HQVAE":
        """A model in evaluation mode, from a folder (also a run's) or a Hugging Face repository.

        Networks of your own are given again. Raises FileNotFoundError where neither is found,
        ValueError where config or weights are damaged or do not fit each other.
        """
        folder = pretrained.find_folder(str(source))
        config = pretrained.read_config(folder)
        pretrained.check_weights(folder / pretrained.WEIGHTS)
        pretrained.check_sizes(
            config, folder, own_networks=encoder is not None or decoder is not None
        )
        model = cls(config, encoder, decoder, pretrained.read_data(folder))
        pretrained.load_weights(model, folder)
        return model.eval()
