"""Items whose codes collide, to be given IDs."""

import math

import torch

from hqvae.ids import make_ids
from hqvae.quantize import NearestCodeConfig, ResidualQuantizer


class Items:
    """Vectors, their codes, and their candidates, of a small random quantizer."""

    def __init__(self, count, sizes=(4, 3), seed=0, spread=1.0, beam_size=None):
        self.sizes = sizes
        generator = torch.Generator().manual_seed(seed)
        self.quantizer = ResidualQuantizer(2, sizes[0], len(sizes), NearestCodeConfig())
        for codebook, size in zip(self.quantizer.codebooks, sizes):
            codebook.vectors.data = torch.randn(size, 2, generator=generator)
            codebook.codebook_size = size
        self.z = torch.randn(count, 2, generator=generator) * spread
        self.keys = [f"item {number}" for number in torch.randperm(count, generator=generator)]
        beam_size = math.prod(sizes) if beam_size is None else beam_size
        self.codes = self.quantizer.encode(self.z, beam_size)

    def make(self, rule, rows=None, existing=None, codes=None):
        """IDs of these rows."""
        rows = torch.arange(len(self.z)) if rows is None else torch.as_tensor(rows)
        z = self.z[rows]
        return make_ids(
            [self.keys[row] for row in rows],
            self.codes[rows] if codes is None else codes,
            lambda of, count: self.quantizer.candidates(z[of], count),
            rule,
            existing,
            codebook_sizes=self.sizes,
        )

    def errors(self, codes):
        return (self.z - self.quantizer.lookup(codes)).square().sum(1).double()
