"""A stack of layers that quantizes one latent: z̃ ≈ Σ_l z_l, each layer on what those before left.

    z̃_1 = z̃        z̃_l = z̃ − Σ_{l'<l} z_l'    (HQ-VAE, residual top-down layers; RQ-VAE)

One layer is plain vector quantization. A level of HQ-VAE has one such stack: its first layer is
the level's *injected* layer, the further ones are its *residual* layers.
"""

from collections.abc import Callable, Sequence
from itertools import accumulate

import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor, nn

from hqvae.integers import integers

from .codebook import Codebook, flatten_positions
from .external import ExternalConfig
from .noise import Noise, Stream
from .posterior import Choice, GumbelSoftmaxConfig, InitPlace, NearestCodeConfig, Posterior
from .prior import LearnedPrior
from .quantized import Quantized, pool_layers, sum_layers
from .shapes import check_layers, check_positive, check_width
from .sums import nearest_sum, nearest_sums

QuantizerConfig = GumbelSoftmaxConfig | NearestCodeConfig | ExternalConfig


class ResidualQuantizer(nn.Module):
    """L layers of codebooks and the posterior that chooses from them; useful in any network.

    Args:
        dim: width D of a code
        codebook_size: K of each layer, ≥ 2
        layers: L ≥ 1
        config: how codes are chosen: stochastic, deterministic or external
        shared_codebook: whether the layers hold one codebook
        beam_size: how many partial sums `encode` keeps when it looks for the codes whose sum is
            nearest to z̃; with 1 each layer takes the code nearest to what is left
        prior: p(Z) where it is learned, of as many layers and codes; None for a uniform one

    Shape:
        z_e [B, D, *S] → `Quantized`

    Questions change no state. Verbs do: `init`, `refine`, `update`, `use_nearest`.

    Sources: SQ-VAE (Takida et al., 2022), HQ-VAE (Takida et al., 2024), RQ-VAE (Lee et al., 2022).

    >>> quantizer = ResidualQuantizer(dim=8, codebook_size=64, layers=3)
    >>> out = quantizer(torch.randn(2, 8, 4, 4))
    >>> out.z.shape, out.codes.shape, out.entropy.shape, out.latent_loss.shape
    (torch.Size([2, 8, 4, 4]), torch.Size([2, 3, 4, 4]), torch.Size([2, 3]), torch.Size([2]))
    >>> loss = (out.latent_loss - out.entropy.sum(1)).mean()  # nats per sample
    >>> codes = quantizer.encode(torch.randn(2, 8, 4, 4))
    >>> quantizer.lookup(codes[:, :2]).shape  # from the first two layers
    torch.Size([2, 8, 4, 4])
    """

    codebooks: Sequence[Codebook]  # an nn.ModuleList
    posterior: Posterior

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        layers: int = 1,
        config: QuantizerConfig = GumbelSoftmaxConfig(),
        shared_codebook: bool = False,
        beam_size: int = 1,
        prior: LearnedPrior | None = None,
    ):
        super().__init__()
        check_positive(layers=layers, beam_size=beam_size)
        if prior is not None:
            prior.check_fits(layers, codebook_size)
        self.dim = dim
        self.codebook_size = codebook_size
        self.shared_codebook = shared_codebook
        self.beam_size = beam_size
        count = 1 if shared_codebook else layers
        own = [config.make_codebook(dim, codebook_size) for _ in range(count)]
        self.codebooks = nn.ModuleList(own * layers if shared_codebook else own)  # type: ignore
        self.config = config
        self._set_posterior(config.make_posterior(dim, layers))
        self.posterior.prior = prior

    def _set_posterior(self, posterior: Posterior) -> None:
        self.posterior = posterior
        if not posterior.gradient_moves_codes:
            for codebook in self.codebooks:
                codebook.requires_grad_(False)

    # --------------------------------------------------------------------------- questions

    def forward(
        self,
        z_e: Float[Tensor, "B D *S"],
        temperature: Tensor | float = 1.0,
        noise: Noise | None = None,
    ) -> Quantized:
        """Relaxed samples in training mode, the codes of `encode` in evaluation mode.

        `noise` (drawn from torch's generator when not given) matters in training mode only.
        Raises ValueError for a z_e of another width.
        """
        check_width(z_e, self.dim)
        posterior = self.posterior
        stream = noise or (Noise.draw() if self.training else Noise(torch.tensor(0)))

        def relax(layer: int, residual: Tensor) -> Choice:
            codebook = self.codebooks[layer]
            return posterior.relax(layer, residual, codebook, temperature, stream.fold(layer))

        choices = self._recursion(z_e, relax) if self.training else self._nearest(z_e)
        return Quantized.of(choices, posterior.latent_loss(z_e, choices))

    @torch.no_grad()
    def sample(self, z_e: Float[Tensor, "B D *S"], noise: Noise) -> Quantized:
        """True draws: Z̃ from its Gaussian around z_e, every Z_l hard from its P̂.

        The latent loss is then `Posterior.kl_continuous`, a term of the evidence bound. A
        deterministic posterior has one draw: the codes of `encode`.
        """
        check_width(z_e, self.dim)
        drawn = self.posterior.perturb(z_e, noise)
        choices = self._draw(drawn, noise) if self.posterior.stochastic else self._nearest(drawn)
        return Quantized.of(choices, self.posterior.kl_continuous(drawn, choices))

    @torch.no_grad()
    def encode(
        self,
        z_e: Float[Tensor, "B D *S"],
        beam_size: int | None = None,
        rate_weight: float | None = None,
    ) -> Int[Tensor, "B L ..."]:
        """Codes [B, L, *S], the same in either mode. Raises ValueError for a z_e of another width.

        `beam_size` in place of the quantizer's own, `rate_weight` in place of a learned prior's:
        the higher it is, the fewer bits codes have.
        """
        check_width(z_e, self.dim)
        width = self.beam_size if beam_size is None else beam_size
        prices = self.posterior.prices(rate_weight)
        if self._searches_sums(width):
            return nearest_sum(z_e, self.codebooks, width, prices)

        def nearest(layer: int, residual: Tensor) -> Choice:
            codebook = self.codebooks[layer]
            codes = codebook.nearest(residual, prices[layer])
            return Choice(codebook.lookup(codes, check=False), codes)

        return _codes(self._recursion(z_e, nearest))

    @torch.no_grad()
    def candidates(self, z_e: Float[Tensor, "B D *S"], count: int) -> tuple[Tensor, Tensor]:
        """The nearest sums, nearest first: codes [B, C, L, *S], errors ‖z̃ − Σ_l z_l‖² [B, C, *S].

        C is `count`, or K^L where that is less: what a beam no narrower than that ends with. What
        codes pay by a learned prior is in the errors. Raises ValueError for a z_e of another width,
        a count below 1, and external quantizers.
        """
        check_width(z_e, self.dim)
        return nearest_sums(z_e, self.codebooks, self.posterior, count, self.beam_size)

    def lookup(self, codes: Integer[Tensor, "B k *S"], check: bool = True) -> Tensor:
        """Σ_l z_l [B, D, *S] of the first k ≤ L layers' codes, the way back from `encode`.

        Raises ValueError for more layers than there are, none, or a code outside its codebook.
        """
        return self.given(codes, check).z

    def given(self, codes: Integer[Tensor, "B k *S"], check: bool = True) -> Quantized:
        """What `lookup` sums, layer by layer; entropy and loss are zero. Raises as it does."""
        codes = integers(codes)
        check_layers(codes, len(self.codebooks))
        none = torch.zeros(len(codes), device=codes.device)
        pairs = zip(self.codebooks, codes.unbind(1))
        choices = [Choice(codebook.lookup(k, check), k, none) for codebook, k in pairs]
        return Quantized.of(choices, none)

    # ------------------------------------------------------------------------------- verbs

    @torch.no_grad()
    def init(self, z_e: Float[Tensor, "B D *S"], noise: Noise, steps: int = 1) -> Tensor:
        """Start codebooks and s² from the features, layer by layer; changes state.

        `steps` says of how many steps' batches the features are; counts begin as those of one. A
        shared codebook starts from what the first layer is given. Returns a relaxed sample of z,
        for levels below. Raises DegenerateFeatures for features that do not vary or are not finite.
        """
        check_width(z_e, self.dim)

        def start(layer: int, residual: Tensor) -> Choice:
            codebook = self.codebooks[layer]
            stream = noise.fold(layer)
            place = InitPlace(stream, self.shared_codebook and layer > 0, steps)
            self.posterior.init(layer, residual, codebook, place)
            return self.posterior.relax(layer, residual, codebook, 1.0, stream)

        return self._started(z_e, self._recursion(z_e, start), steps)

    @torch.no_grad()
    def refine(self, z_e: Float[Tensor, "B D *S"], noise: Noise, steps: int = 1) -> Tensor:
        """Move codes to the means of what is nearest to them, layer by layer; changes state.

        Relaxed codes are not cluster means: without this the residuals of all later layers would
        shift when codes become the nearest ones. A shared codebook keeps its vectors, for k-means
        would fit the first layer's residuals only. Arguments and result as for `init`.
        """
        check_width(z_e, self.dim)

        def refine(layer: int, residual: Tensor) -> Choice:
            codebook = self.codebooks[layer]
            if not self.shared_codebook:
                codebook.refine_kmeans(residual, noise.fold(layer))
            choice = self.posterior.nearest(layer, residual, codebook)
            codebook.set_counts(choice.codes, steps)
            return choice

        return self._started(z_e, self._recursion(z_e, refine), steps)

    @torch.no_grad()
    def update(
        self, z_e: Float[Tensor, "B D *S"], codes: Int[Tensor, "B L *S"], noise: Noise
    ) -> int:
        """Move running averages with what `forward` quantized: codebooks and prior. Changes state.

        Returns how many codes were restarted. Codebooks that learn by gradient stay.
        """
        posterior = self.posterior
        if posterior.prior is not None:
            drawn = _codes(self._draw(z_e, noise)) if posterior.stochastic else codes
            posterior.prior.track(drawn, z_e - self.lookup(drawn, check=False))
        if posterior.gradient_moves_codes:
            return 0
        given = codes.unbind(1)
        *residuals, _ = accumulate(self.given(codes, False).layers, torch.sub, initial=z_e.detach())
        if self.shared_codebook:
            rows, pooled = pool_layers(residuals, given)
            return posterior.update(self.codebooks[0], rows, pooled, noise.fold(Stream.RESTART))
        return sum(
            posterior.update(codebook, flatten_positions(left), own.flatten(), noise.fold(layer))
            for layer, (codebook, left, own) in enumerate(zip(self.codebooks, residuals, given))
        )

    def use_nearest(self, layers_per_level: Sequence[int] = ()) -> None:
        """Choose nearest codes from here on, the limit s² → 0; codebooks stay. Changes state.

        `layers_per_level` is the model's, if this stack is one of several. A second call is idle.
        """
        limit = self.posterior.limit(layers_per_level or [len(self.codebooks)])
        if limit is not None:
            self._set_posterior(limit.to(self.codebooks[0].vectors.device).train(self.training))

    # ------------------------------------------------------------------------------- parts

    def _recursion(self, z_e: Tensor, choose: Callable[[int, Tensor], Choice]) -> list[Choice]:
        """z̃_{l+1} = z̃_l − z_l: the one loop over the layers of a stack."""
        choices = [choose(0, z_e)]
        residual = z_e
        for layer in range(1, len(self.codebooks)):
            z = choices[-1].z
            residual = residual - (z.detach() if self.posterior.detach_residual else z)
            choices.append(choose(layer, residual))
        return choices

    def _draw(self, z_e: Tensor, noise: Noise) -> list[Choice]:
        def draw(layer: int, left: Tensor) -> Choice:
            return self.posterior.sample(layer, left, self.codebooks[layer], noise.fold(layer))

        return self._recursion(z_e, draw)

    def _started(self, z_e: Tensor, choices: list[Choice], steps: int) -> Tensor:
        """The sum of the first choices; what is counted of several layers begins with them."""
        codes = _codes(choices)
        z = sum_layers([choice.z for choice in choices])
        if self.shared_codebook and not self.posterior.gradient_moves_codes:
            self.codebooks[0].set_counts(codes, steps)  # pooled, as `update` does
        if self.posterior.prior is not None:
            self.posterior.prior.start(codes, z_e - z, steps)
        return z

    def _searches_sums(self, beam_size: int) -> bool:
        return beam_size > 1 and len(self.codebooks) > 1 and self.posterior.supports_beam

    def _nearest(self, z_e: Tensor) -> list[Choice]:
        """The choices of `encode`."""
        given: Sequence[Tensor | None] = [None] * len(self.codebooks)
        if self._searches_sums(self.beam_size) or self.posterior.prior is not None:
            given = self.encode(z_e).unbind(1)  # the level's s² prices them, not each layer's

        def nearest(layer: int, residual: Tensor) -> Choice:
            return self.posterior.nearest(layer, residual, self.codebooks[layer], given[layer])

        return self._recursion(z_e, nearest)


def _codes(choices: Sequence[Choice]) -> Int[Tensor, "B L ..."]:
    return torch.stack([choice.codes for choice in choices], 1)
