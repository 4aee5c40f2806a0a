"""A codebook: K vectors, the way between vectors and codes, and every way the vectors can move."""

import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor, nn

from hqvae.errors import DegenerateFeatures
from hqvae.integers import integers
from hqvae.ranks import all_sum, rows_before_mine

from .kernels import nearest
from .noise import Noise, Stream
from .prior import priced

_KMEANS_ROUNDS = 10
_KMEANS_JITTER = 0.1  # of the rows' deviation: two codes that begin on one row must part
_SMOOTHING = 1e-5  # Laplace smoothing of the counts, as in the VQ-VAE authors' code
_RESTART_SHARE = 1 / 8  # of its even share: a code that has at least so much of a batch stays


def flatten_positions(z: Float[Tensor, "B D *S"]) -> Float[Tensor, "N D"]:
    """[B, D, *S] → [N, D]: positions of one sample stay together and in order."""
    return z.movedim(1, -1).reshape(-1, z.shape[1])


def unflatten_positions(rows: Float[Tensor, "N D"], like: Tensor) -> Float[Tensor, "B D ..."]:
    """[N, D] → [B, D, *S], the inverse of `flatten_positions` for a tensor shaped as `like`."""
    return rows.reshape(like.shape[0], *like.shape[2:], like.shape[1]).movedim(-1, 1)


def check_size(dim: int, codebook_size: int) -> None:
    """Raises ValueError for fewer than 2 codes or 1 dimension."""
    if codebook_size < 2:
        raise ValueError(f"codebook_size is {codebook_size}; a codebook needs at least 2 codes")
    if dim < 1:
        raise ValueError(f"dim is {dim}; a code needs at least 1 dimension")


def check_codes(codes: Tensor, codebook_size: int) -> None:
    """Raises ValueError for a code outside 0 … K − 1.

    A graph of `torch.export` cannot ask for values. It has no check but that of the look-up itself.
    """
    if torch.compiler.is_exporting():
        return
    if codes.numel() and (codes.min() < 0 or codes.max() >= codebook_size):
        raise ValueError(
            f"codes range from {int(codes.min())} to {int(codes.max())}; "
            f"this codebook has codes 0 to {codebook_size - 1}"
        )


class Codebook(nn.Module):
    """K vectors b_k of width D, and how many features each of them stands for.

    Gradients move the vectors of a stochastic system; `update` moves those of a deterministic one:

        N_k ← γ N_k + (1 − γ) n_k    m_k ← γ m_k + (1 − γ) Σ_{z→k} z    b_k = m_k / N_k

    with Laplace smoothing of N (VQ-VAE, van den Oord et al., NeurIPS 2017, appendix A.1). The
    sums m_k are not kept: they are b_k · N_k, so that no restart can leave them behind.

    Args:
        dim: width D of a code
        codebook_size: K ≥ 2

    Shape:
        vectors [K, D], a parameter; counts [K], the averages N_k

    >>> codebook = Codebook(dim=4, codebook_size=16)
    >>> codes = codebook.nearest(torch.randn(2, 4, 8, 8))
    >>> codes.shape, codebook.lookup(codes).shape
    (torch.Size([2, 8, 8]), torch.Size([2, 4, 8, 8]))
    """

    counts: Tensor

    def __init__(self, dim: int, codebook_size: int):
        super().__init__()
        check_size(dim, codebook_size)
        self.dim = dim
        self.codebook_size = codebook_size
        self.vectors = nn.Parameter(torch.randn(codebook_size, dim))
        self.register_buffer("counts", torch.ones(codebook_size))

    def lookup(self, codes: Integer[Tensor, "B *S"], check: bool = True) -> Float[Tensor, "B D *S"]:
        """The codes' vectors.

        Codes may be of any integer type. Raises ValueError for others, and for a code outside
        0 … K − 1. `check=False` is for int64 codes known to be in range: a GPU waits for the check.
        """
        if check:
            codes = integers(codes)
            check_codes(codes, self.codebook_size)
        return nn.functional.embedding(codes, self.vectors).movedim(-1, 1)

    def nearest(
        self, z_e: Float[Tensor, "B D *S"], price: Float[Tensor, "K"] | None = None
    ) -> Int[Tensor, "B *S"]:
        """argmin_k ‖z_e − b_k‖² + price_k, position by position: batch mates have no say."""
        rows = flatten_positions(z_e)
        vectors: Tensor = self.vectors
        if price is not None:
            rows, (vectors,) = priced(rows, [vectors], [price])
        codes = nearest(rows, vectors)
        return codes.reshape(z_e.shape[0], *z_e.shape[2:])

    # ------------------------------------------------------------------------ initialisation

    @torch.no_grad()
    def init_kmeans(self, z_e: Float[Tensor, "B D *S"], noise: Noise) -> None:
        """Vectors become the k-means of the features, from random features; changes state.

        With no more distinct features than codes the vectors stay on random features.
        Raises DegenerateFeatures for features that are all the same or not finite.
        """
        rows = _varied_rows(z_e)
        generator = noise.fold(Stream.KMEANS).generator()
        copies = -(-self.codebook_size // len(rows))
        orders = [torch.randperm(len(rows), generator=generator) for _ in range(copies)]
        chosen = torch.cat(orders)[: self.codebook_size].to(rows.device)
        jitter = torch.randn(self.codebook_size, self.dim, generator=generator).to(rows)
        deviation = rows.var(0, correction=0).mean().sqrt()
        self.vectors.copy_(rows[chosen] + _KMEANS_JITTER * deviation * jitter)
        self._lloyd(rows, generator)

    @torch.no_grad()
    def refine_kmeans(self, z_e: Float[Tensor, "B D *S"], noise: Noise) -> None:
        """Lloyd iterations from the current vectors; changes state.

        Raises DegenerateFeatures for features that are all the same or not finite.
        """
        self._lloyd(_varied_rows(z_e), noise.fold(Stream.KMEANS).generator())

    def _lloyd(self, rows: Tensor, generator: torch.Generator) -> None:
        """Move vectors to the means of what is nearest to them; empty clusters are re-seeded.

        They take a row with a probability that grows with its squared error, as in k-means++.
        """
        distinct = len(rows) > self.codebook_size and len(rows.unique(dim=0)) > self.codebook_size
        if not distinct:
            return  # every row would be a code, and residual layers would have nothing left
        vectors = self.vectors.float()
        for _ in range(_KMEANS_ROUNDS):
            codes = nearest(rows, vectors)
            counts = torch.bincount(codes, minlength=self.codebook_size).unsqueeze(1)
            square_error = (rows - vectors[codes]).square().sum(1).cpu()
            seeds = torch.multinomial(square_error, self.codebook_size, True, generator=generator)
            sums = torch.zeros_like(vectors).index_add_(0, codes, rows)
            means = sums / counts.clamp(min=1)
            vectors = torch.where(counts > 0, means, rows[seeds.to(rows.device)])
        self.vectors.copy_(vectors)

    # ---------------------------------------------------------------------- moving averages

    @torch.no_grad()
    def set_counts(self, codes: Int[Tensor, "..."], steps: int = 1) -> None:
        """N_k as if every step chose as these codes of `steps` steps do, at least 1 each.

        Larger counts would keep the averages from moving at first, smaller ones restart the
        code at once. Changes state.
        """
        chosen = torch.bincount(codes.flatten(), minlength=self.codebook_size)
        self.counts.copy_((chosen / steps).clamp(min=1))

    @torch.no_grad()
    def update(
        self,
        rows: Float[Tensor, "N D"],
        codes: Int[Tensor, "N"],
        decay: float,
        restart: bool,
        noise: Noise,
    ) -> int:
        """One step of the moving averages with all processes' rows, then the restarts.

        Returns how many codes were restarted. Changes state.
        """
        rows = rows.to(self.vectors)
        chosen = all_sum(torch.bincount(codes, minlength=self.codebook_size).to(self.counts))
        sums = all_sum(torch.zeros_like(self.vectors).index_add_(0, codes, rows))
        old_sums = self.vectors * self._smoothed_counts().unsqueeze(1)
        self.counts.mul_(decay).add_(chosen, alpha=1 - decay)
        new_sums = decay * old_sums + (1 - decay) * sums
        self.vectors.copy_(new_sums / self._smoothed_counts().unsqueeze(1))
        if not restart:
            return 0
        even_share = float(chosen.sum()) / self.codebook_size
        return self._restart(rows, noise, below=min(1.0, even_share * _RESTART_SHARE))

    def _smoothed_counts(self) -> Tensor:
        total = self.counts.sum()
        share = (self.counts + _SMOOTHING) / (total + self.codebook_size * _SMOOTHING)
        return share * total

    def _restart(self, rows: Tensor, noise: Noise, below: float) -> int:
        """Codes with N_k < `below` become random rows of the global batch (RQ-VAE, sec. 3).

        RQ-VAE restarts below 1. Where a batch has few features for each code, an eighth of the
        even share is enough to stay: or every code would be put back at every step. Every process
        draws the same row numbers.
        """
        unused = torch.nonzero(self.counts < below).squeeze(1)
        before, total = rows_before_mine(len(rows), rows.device)
        generator = noise.generator()
        drawn = torch.randint(total, (self.codebook_size,), generator=generator).to(rows.device)
        chosen = drawn[: len(unused)] - before
        mine = (chosen >= 0) & (chosen < len(rows))
        vectors = rows.new_zeros(len(unused), self.dim)
        vectors[mine] = rows[chosen[mine]]
        self.vectors[unused] = all_sum(vectors)
        self.counts[unused] = 1.0
        return len(unused)


def _varied_rows(z_e: Tensor) -> Tensor:
    """Features as float32 rows. Raises DegenerateFeatures where they do not vary."""
    rows = flatten_positions(z_e.detach()).float()
    variance = rows.var(0, correction=0).mean()
    if not torch.isfinite(variance) or variance <= 0:
        raise DegenerateFeatures(
            "no codebook can start where the features are constant or not finite"
        )
    return rows
