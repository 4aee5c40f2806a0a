"""Quantizers of vector-quantize-pytorch as codebook and posterior, for comparison at equal rate.

    fsq       finite scalar quantization, K levels as a product of eights and fours
              (Mentzer et al., ICLR 2024)
    lfq       lookup-free quantization, log2 K signs (Yu et al., ICLR 2024)
    simvq     a frozen codebook behind a learned linear map (Zhu et al., 2024)
    rotation  nearest code with the rotation trick, k-means start and restart of dead codes
              (Fifty et al., ICLR 2025)

The modules are the library's own, with their defaults, losses and state, which they change in
`forward`. Only lfq has another entropy weight, that of the library's example: its default outweighs
a mean squared error.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hqvae.config_class import config_class
from hqvae.errors import InputError

from .codebook import check_codes, check_size
from .noise import Noise
from .posterior import Choice, InitPlace, Posterior


@config_class
class ExternalConfig:
    """A quantizer of vector-quantize-pytorch."""

    stochastic: ClassVar[bool] = False
    kind: Literal["external"] = "external"
    name: Literal["fsq", "lfq", "simvq", "rotation"] = "fsq"
    """which of the four"""

    def make_codebook(self, dim: int, codebook_size: int) -> "ExternalCodebook":
        return ExternalCodebook(dim, codebook_size, self)

    def make_posterior(self, dim: int, layers: int) -> "External":
        return External(layers)

    @property
    def updates_in_forward(self) -> bool:
        """Whether the codebook moves with every batch that is passed through it."""
        return self.name == "rotation"


def fsq_levels(codebook_size: int) -> list[int]:
    """FSQ's levels whose product is exactly K, a power of two ≥ 4: eights, and fours for the rest.

    >>> fsq_levels(512), fsq_levels(256)
    ([8, 8, 8], [8, 8, 4])

    Raises InputError for any other K.
    """
    bits = codebook_size.bit_length() - 1
    if codebook_size < 4 or codebook_size != 1 << bits:
        raise InputError(
            f"codebook_size={codebook_size}: fsq takes powers of two from 4 on, "
            "so that rates can be equal"
        )
    eights = next(n for n in range(bits // 3, -1, -1) if (bits - 3 * n) % 2 == 0)
    return [8] * eights + [4] * ((bits - 3 * eights) // 2)


def _make_module(name: str, dim: int, codebook_size: int) -> nn.Module:
    try:
        import vector_quantize_pytorch as library
    except ImportError as error:
        raise InputError(
            "quantizer kind 'external' needs vector-quantize-pytorch: pip install 'hqvae[compare]'"
        ) from error
    if name == "fsq":
        return library.FSQ(levels=fsq_levels(codebook_size), dim=dim)
    if name == "lfq":
        if codebook_size & (codebook_size - 1):
            raise InputError(f"codebook_size={codebook_size}: lfq takes powers of two")
        return library.LFQ(dim=dim, codebook_size=codebook_size, entropy_loss_weight=0.02)
    if name == "simvq":
        return library.SimVQ(dim=dim, codebook_size=codebook_size)
    return library.VectorQuantize(
        dim=dim,
        codebook_size=codebook_size,
        rotation_trick=True,
        kmeans_init=True,
        threshold_ema_dead_code=2,
    )


class ExternalCodebook(nn.Module):
    """The codes of a module of vector-quantize-pytorch, with the calls of `Codebook`.

    Args:
        dim: width D of a code
        codebook_size: K ≥ 2 (fsq: a power of two from 4 on; lfq: a power of two)
        config: which quantizer

    Raises InputError where vector-quantize-pytorch is missing or K does not suit.
    """

    def __init__(self, dim: int, codebook_size: int, config: ExternalConfig = ExternalConfig()):
        super().__init__()
        check_size(dim, codebook_size)
        self.dim = dim
        self.codebook_size = codebook_size
        self.config = config
        self.module = _make_module(config.name, dim, codebook_size)

    @property
    def vectors(self) -> Float[Tensor, "K D"]:
        """All the codes' vectors, computed: where codes are implicit there is no table."""
        first = next(iter([*self.module.parameters(), *self.module.buffers()]))
        codes = torch.arange(self.codebook_size, device=first.device)
        return self.lookup(codes, check=False).contiguous()

    def lookup(self, codes: Int[Tensor, "B *S"], check: bool = True) -> Float[Tensor, "B D ..."]:
        """As `Codebook.lookup`."""
        if check:
            check_codes(codes, self.codebook_size)
        module: Any = self.module
        flat = codes.flatten().unsqueeze(0)
        if self.config.name == "rotation":
            vectors = module.get_output_from_indices(flat)
        else:
            vectors = module.indices_to_codes(flat)
        return vectors.reshape(*codes.shape, self.dim).movedim(-1, 1)

    def run(self, z_e: Float[Tensor, "B D *S"]) -> tuple[Tensor, Tensor, Tensor]:
        """(z, codes, loss) of the module, in its mode, in float32. May change its state."""
        rows = z_e.float().movedim(1, -1)
        with torch.autocast(z_e.device.type, enabled=False):
            z, codes, *losses = self.module(rows.reshape(len(z_e), -1, self.dim))
        loss = sum((part.sum() for part in losses), torch.zeros((), device=z_e.device))
        codes = codes.reshape(rows.shape[:-1]).long()
        return z.reshape(rows.shape).movedim(-1, 1), codes, loss

    @torch.no_grad()
    def nearest(self, z_e: Float[Tensor, "B D *S"], price: None = None) -> Int[Tensor, "B *S"]:
        """The codes of evaluation mode, in either mode; none has a price."""
        mode = self.module.training
        self.module.eval()
        try:
            return self.run(z_e)[1]
        finally:
            self.module.train(mode)


class External(Posterior):
    """Chooses as the module does; deterministic, so entropy and variance are zero.

    The latent loss is the sum of the modules' own losses. As in the library's residual stacks a
    layer takes the codes before it as constants, so each layer's loss reaches the encoder.
    """

    name = "external"
    stochastic = False
    in_nats = False
    gradient_moves_codes = True  # or the module itself does, in `forward`
    detach_residual = True
    supports_beam = False
    no_variance: Tensor

    def __init__(self, layers: int):
        super().__init__()
        self.register_buffer("no_variance", torch.zeros(layers), persistent=False)

    @property
    def variance(self) -> Float[Tensor, "L"]:
        """s² = 0: the choice is deterministic."""
        return self.no_variance

    def relax(
        self, layer: int, z_e: Tensor, codebook: Any, temperature: Tensor | float, noise: Noise
    ) -> Choice:
        z, codes, loss = codebook.run(z_e)
        no_entropy = z_e.new_zeros(len(z_e), dtype=torch.float32)
        return Choice(z, codes, no_entropy, loss.expand(len(z_e)))

    @torch.no_grad()
    def nearest(
        self, layer: int, z_e: Tensor, codebook: Any, codes: Tensor | None = None
    ) -> Choice:
        codes = codebook.nearest(z_e) if codes is None else codes
        zeros = z_e.new_zeros(len(z_e), dtype=torch.float32)
        return Choice(codebook.lookup(codes, check=False), codes, zeros, zeros)

    def sample(self, layer: int, z_e: Tensor, codebook: Any, noise: Noise) -> Choice:
        """The code of evaluation mode: a posterior with all its mass on one code."""
        return self.nearest(layer, z_e, codebook)

    def latent_loss(self, z_e: Tensor, choices: Sequence[Choice]) -> Float[Tensor, "B"]:
        return torch.stack([choice.cost for choice in choices if choice.cost is not None]).sum(0)

    @torch.no_grad()
    def init(self, layer: int, z_e: Tensor, codebook: Any, place: InitPlace) -> None:
        """A first look at this batch: rotation starts its codes there, the others do nothing."""
        if codebook.config.updates_in_forward and not place.keep_vectors:
            codebook.run(z_e)
