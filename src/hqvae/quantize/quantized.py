"""What one quantization by a stack of layers is, and sums and pools over its layers."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .posterior import Choice


@dataclass(frozen=True)
class Quantized:
    """One quantization.

    Shape:
        z: [B, D, *S], what flows on: a relaxed sample in training, `lookup(codes)` in evaluation
        codes: [B, L, *S] int64, in training the nearest ones to each layer's z̃
        entropy: [B, L], H(P̂) summed over the positions, in nats (zero for a deterministic choice)
        latent_loss: [B], in nats or in mean squared error, as `Posterior.in_nats` says
        layers: L × [B, D, *S], the z_l whose sum z is
        rate: [B, L], −log p(Z_l) summed over the positions, in nats: in training with the weights
            of the relaxed sample where codes pay; None where the prior is uniform
    """

    z: Float[Tensor, "B D ..."]
    codes: Int[Tensor, "B L ..."]
    entropy: Float[Tensor, "B L"]
    latent_loss: Float[Tensor, "B"]
    layers: tuple[Tensor, ...]
    rate: Float[Tensor, "B L"] | None = None

    @classmethod
    def of(cls, choices: Sequence[Choice], latent_loss: Float[Tensor, "B"]) -> "Quantized":
        """What the layers' choices come to."""
        entropies = [choice.entropy for choice in choices if choice.entropy is not None]
        rates = [choice.rate for choice in choices if choice.rate is not None]
        return cls(
            z=sum_layers([choice.z for choice in choices]),
            codes=torch.stack([choice.codes for choice in choices], 1),
            entropy=torch.stack(entropies, 1),
            latent_loss=latent_loss,
            layers=tuple(choice.z for choice in choices),
            rate=torch.stack(rates, 1) if rates else None,
        )


def pool_layers(
    z_e: list[Tensor], codes: tuple[Tensor, ...]
) -> tuple[Float[Tensor, "N D"], Int[Tensor, "N"]]:
    """Rows and codes of layers that share one codebook.

    Sample by sample, and only then layer by layer: the processes' rows one after the other are
    then those of one process.
    """
    rows = torch.cat([_positions(z.detach()).movedim(1, 2) for z in z_e], 1)
    pooled = torch.cat([_positions(c.unsqueeze(1)).squeeze(1) for c in codes], 1)
    return rows.flatten(0, 1), pooled.flatten()


def _positions(z: Float[Tensor, "B D *S"] | Int[Tensor, "B D *S"]) -> Tensor:
    """[B, D, *S] → [B, D, positions], one position where there is no space."""
    return z.unsqueeze(-1).flatten(2)


def sum_layers(parts: Sequence[Tensor]) -> Tensor:
    """In the order of the layers, so that `lookup` and evaluation agree to the last bit."""
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total
