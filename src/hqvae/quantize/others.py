"""Quantizers of vector-quantize-pytorch behind our contract: what a user would pick instead, for comparison at equal rate.

    fsq       finite scalar quantization, K levels as a product of eights and fours            (Mentzer et al., ICLR 2024)
    lfq       lookup-free quantization, log2 K signs                                          (Yu et al., ICLR 2024)
    simvq     a frozen codebook behind a learned linear map                                   (Zhu et al., 2024)
    rotation  nearest code with the rotation trick, k-means start and restart of dead codes   (Fifty et al., ICLR 2025)

Not rewritten: the modules are theirs, with their defaults, losses and state (which they change in `forward`); lfq with the entropy
weight of the library's own example, because its default outweighs a mean squared error.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass as config
from torch import Tensor, nn

from hqvae.errors import InputError

from .base import Quantized, Quantizer
from .noise import Noise


@config(frozen=True, config=ConfigDict(extra="forbid"))
class OtherConfig:
    """`name` says which of the four."""

    kind: Literal["other"] = "other"
    name: Literal["fsq", "lfq", "simvq", "rotation"] = "fsq"


def scalar_levels(codebook_size: int) -> list[int]:
    """FSQ's levels whose product is exactly K, a power of two ≥ 4: eights, and fours for the rest. 512 → [8, 8, 8], 256 → [8, 8, 4]."""
    bits = codebook_size.bit_length() - 1
    if codebook_size < 4 or codebook_size != 1 << bits:
        raise InputError(f"codebook_size={codebook_size}: fsq takes powers of two from 4 on, so that rates can be equal")
    eights = next(n for n in range(bits // 3, -1, -1) if (bits - 3 * n) % 2 == 0)
    return [8] * eights + [4] * ((bits - 3 * eights) // 2)


def _module(name: str, dim: int, codebook_size: int) -> nn.Module:
    try:
        import vector_quantize_pytorch as library
    except ImportError as error:
        raise InputError("model.quantizer.kind=other needs vector-quantize-pytorch: pip install 'hqvae[compare]'") from error
    if name == "lfq" and codebook_size & (codebook_size - 1):
        raise InputError(f"codebook_size={codebook_size}: lfq takes powers of two")
    make: dict[str, Callable[[], nn.Module]] = {
        "fsq": lambda: library.FSQ(levels=scalar_levels(codebook_size), dim=dim),
        "lfq": lambda: library.LFQ(dim=dim, codebook_size=codebook_size, entropy_loss_weight=0.02),
        "simvq": lambda: library.SimVQ(dim=dim, codebook_size=codebook_size),
        "rotation": lambda: library.VectorQuantize(
            dim=dim, codebook_size=codebook_size, rotation_trick=True, kmeans_init=True, threshold_ema_dead_code=2
        ),
    }
    return make[name]()


class OtherQuantizer(Quantizer):
    """A quantizer of vector-quantize-pytorch; deterministic, so entropy and variance are zero.

    Args:
        dim: width D of a code
        codebook_size: K ≥ 2 (fsq: a power of two from 4 on; lfq: a power of two)
        config: which quantizer

    Shape:
        z_e [B, D, *S] → z [B, D, *S], codes [B, *S], entropy [B] = 0, variance [] = 0, cost [B] their loss

    Raises InputError where vector-quantize-pytorch is missing or K does not suit.
    """

    detached = True  # as their residual stacks do: each layer's loss and straight-through gradient reach the encoder

    def __init__(self, dim: int, codebook_size: int, config: OtherConfig = OtherConfig()):
        super().__init__(dim, codebook_size)
        self.config, self.module = config, _module(config.name, dim, codebook_size)

    @property
    def codebook(self) -> Tensor:  # type: ignore[override]
        """All the codes' vectors [K, D], computed: where codes are implicit there is no table."""
        return self.embed(torch.arange(self.codebook_size, device=self.variance.device)).T.contiguous()

    @property
    def variance(self) -> Tensor:
        """s² = 0: the assignment is deterministic."""
        first = next(iter([*self.module.parameters(), *self.module.buffers()]))
        return torch.zeros((), device=first.device)

    def sibling(self) -> "OtherQuantizer":
        """The same quantizer: layers that share a codebook share the module."""
        return self

    def embed(self, codes: Tensor) -> Tensor:
        flat: Any = codes.flatten().unsqueeze(0)
        look = "get_output_from_indices" if self.config.name == "rotation" else "indices_to_codes"
        vectors = getattr(self.module, look)(flat)
        return vectors.reshape(*codes.shape, self.dim).movedim(-1, 1) if codes.ndim > 1 else vectors.reshape(-1, self.dim).T

    def _run(self, z_e: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(z, codes, loss) of their module, in its mode, float32."""
        rows = z_e.float().movedim(1, -1)
        with torch.autocast(z_e.device.type, enabled=False):
            z, codes, *loss = self.module(rows.reshape(len(z_e), -1, self.dim))
        shape = rows.shape[:-1]
        total = sum((part.sum() for part in loss), torch.zeros((), device=z_e.device))
        return z.reshape(rows.shape).movedim(-1, 1), codes.reshape(shape).long(), total

    def nearest(self, z_e: Float[Tensor, "B D *S"]) -> Tensor:
        """The codes of evaluation mode, in either mode."""
        self._check(z_e)
        mode = self.module.training
        self.module.eval()
        try:
            with torch.no_grad():
                return self._run(z_e)[1]
        finally:
            self.module.train(mode)

    def forward(self, z_e: Float[Tensor, "B D *S"], temperature: Tensor | float = 1.0, noise: Noise | None = None) -> Quantized:
        """Quantize; temperature and noise belong to the contract and have no effect here."""
        nothing = self.variance.expand(len(z_e))
        if not self.training:
            codes = self.nearest(z_e)
            return Quantized(self.embed(codes), codes, nothing, self.variance, nothing)
        self._check(z_e)
        z, codes, loss = self._run(z_e)
        return Quantized(z, codes, nothing, self.variance, loss.expand(len(z_e)))

    def draw(self, z_e: Float[Tensor, "B D *S"], noise: Noise) -> Quantized:
        """The code of evaluation mode: a posterior with all its mass on one code has one draw."""
        codes, nothing = self.nearest(z_e), self.variance.expand(len(z_e))
        return Quantized(self.embed(codes), codes, nothing, self.variance, nothing)

    def fit(self, target: Float[Tensor, "B D *S"], layers: Sequence[Quantized]) -> Float[Tensor, "B"]:
        """The sum of their losses."""
        return torch.stack([layer.cost for layer in layers if layer.cost is not None]).sum(0)

    def surplus(self, target: Float[Tensor, "B D *S"], layers: Sequence[Quantized]) -> Float[Tensor, "B"]:
        """Zero: with a deterministic assignment the latent's cost is its rate alone."""
        return target.new_zeros(len(target), dtype=torch.float32)

    def start_from(self, z_e: Float[Tensor, "B D *S"], noise: Noise, keep_codes: bool = False, steps: int = 1) -> None:
        """A first look at this batch in training mode: `rotation` starts its codes there by k-means, the others do nothing."""
        if self.config.name == "rotation" and not keep_codes:
            with torch.no_grad():
                self._run(z_e)
