"""Our quantizers behind the call of vector-quantize-pytorch: `(quantized, indices, loss)`."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from .noise import Noise
from .residual import ResidualQuantizer


class VectorQuantize(nn.Module):
    """A `ResidualQuantizer` with channels last: `[B, *S, D] → (quantized, indices, loss)`.

    The call is that of `ResidualVQ` of vector-quantize-pytorch. The loss is a scalar, averaged over
    the first axis. For a stochastic quantizer it is ‖z̃ − z‖²/2s² − H in nats per sample: add it to
    a reconstruction loss in nats. For a deterministic one it is β times the mean squared
    commitment: add it to a mean squared error, and call `update` after the optimiser's step.

    Shape:
        z [B, *S, D] → quantized [B, *S, D] in the dtype of z, indices [B, *S, L], loss []

    >>> quantize = VectorQuantize(ResidualQuantizer(dim=64, codebook_size=512, layers=4))
    >>> quantize.init(torch.randn(8, 100, 64))  # once, on features as they will be
    >>> quantized, indices, loss = quantize(torch.randn(2, 100, 64))
    >>> quantized.shape, indices.shape
    (torch.Size([2, 100, 64]), torch.Size([2, 100, 4]))
    """

    def __init__(self, quantizer: ResidualQuantizer):
        super().__init__()
        self.quantizer = quantizer

    def forward(
        self, z: Float[Tensor, "B *S D"], temperature: float = 1.0
    ) -> tuple[Float[Tensor, "B *S D"], Int[Tensor, "B *S L"], Float[Tensor, ""]]:
        out = self.quantizer(z.movedim(-1, 1), temperature)
        loss = (out.latent_loss - out.entropy.sum(1)).mean()
        return out.z.movedim(1, -1).to(z.dtype), out.codes.movedim(1, -1), loss

    @torch.no_grad()
    def init(self, z: Float[Tensor, "B *S D"], noise: Noise | None = None) -> None:
        """Start codebooks and s² from features: `kmeans_init` of vector-quantize-pytorch.

        Without it codes are N(0, I), and s² is made for features of variance one. `noise` is drawn
        from torch's generator when not given. Changes state.
        """
        self.quantizer.init(z.movedim(-1, 1), noise or Noise.draw())

    @torch.no_grad()
    def update(
        self, z: Float[Tensor, "B *S D"], indices: Int[Tensor, "B *S L"], noise: Noise | None = None
    ) -> int:
        """Move codebooks that learn by moving averages; returns how many codes were restarted.

        `noise` (drawn from torch's generator when not given) chooses what they restart on.
        Codebooks that learn by gradient stay.
        """
        codes = indices.movedim(-1, 1)
        return self.quantizer.update(z.movedim(-1, 1), codes, noise or Noise.draw())

    def get_output_from_indices(self, indices: Int[Tensor, "B *S L"]) -> Float[Tensor, "B *S D"]:
        """The vectors that the indices stand for."""
        return self.quantizer.lookup(indices.movedim(-1, 1)).movedim(1, -1)
