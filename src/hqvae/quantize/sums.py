"""Which sums of one code per layer are near a latent: the best one, and those beside it."""

from collections.abc import Iterable, Sequence

from jaxtyping import Float, Int
from torch import Tensor

from .codebook import Codebook, flatten_positions
from .kernels import beam_search, candidates
from .posterior import Posterior
from .prior import priced


def nearest_sum(
    z_e: Float[Tensor, "B D *S"],
    codebooks: Iterable[Codebook],
    beam_size: int,
    prices: Sequence[Tensor | None] = (),
) -> Int[Tensor, "B L ..."]:
    """The codes [B, L, *S] of a sum near z̃; `beam_size` partial sums are kept on the way.

    With prices of every layer's codes it is the sum whose squared distance and prices are least.
    """
    rows, vectors = _charged(z_e, codebooks, prices)
    codes = beam_search(rows, vectors, beam_size)
    return codes.reshape(len(z_e), *z_e.shape[2:], len(vectors)).movedim(-1, 1)


def nearest_sums(
    z_e: Float[Tensor, "B D *S"],
    codebooks: Iterable[Codebook],
    posterior: Posterior,
    count: int,
    beam_size: int,
) -> tuple[Int[Tensor, "B C L ..."], Float[Tensor, "B C ..."]]:
    """`ResidualQuantizer.candidates`; the beam keeps `beam_size` sums, and at least `count`."""
    if not posterior.supports_beam:
        raise ValueError(
            f"a posterior {posterior.name!r} does not choose by distance, and has no candidates; "
            "expected nearest_code or gumbel_softmax"
        )
    rows, vectors = _charged(z_e, codebooks, posterior.prices())
    codes, errors = candidates(rows, vectors, count, beam_size)
    places = (len(z_e), *z_e.shape[2:])
    codes = codes.reshape(*places, *codes.shape[1:]).movedim((-2, -1), (1, 2))
    return codes, errors.reshape(*places, errors.shape[1]).movedim(-1, 1)


def _charged(
    z_e: Tensor, codebooks: Iterable[Codebook], prices: Sequence[Tensor | None]
) -> tuple[Tensor, list[Tensor]]:
    """Rows, and vectors of every layer, with what codes pay in their distance."""
    rows = flatten_positions(z_e)
    vectors: list[Tensor] = [codebook.vectors for codebook in codebooks]
    paid = [price for price in prices if price is not None]
    return priced(rows, vectors, paid) if paid else (rows, vectors)
