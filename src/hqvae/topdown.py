"""Levels, and the one walk over them.

A *level* is one resolution r of the hierarchy. In the paper's words its first layer is an
*injected* layer, which sees the features h^r and what the levels above have decided, and its
further layers are *residual* layers (`quantize/residual.py` holds both kinds as one stack):

    injected    Z̃_first = G_φ^r(h^r, state)
    residual    Z̃_l = Z̃_first − Σ_{l' before it in the level} Z_l'
    latent      state' = prediction(state) + Σ_{l∈r} Z_l

The walk goes coarse to fine and carries one tensor, the latent so far. Where a level's codes come
from is its *source*: relaxed samples, posterior samples, nearest codes, or given codes (a prefix of
the layers is a coarser decode). Training, encoding, decoding and sampling are one walk with another
source. There is no other loop over levels.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hqvae.errors import DegenerateFeatures
from hqvae.quantize import Noise, Quantized, ResidualQuantizer, Stream


class LevelOutput(NamedTuple):
    """A level's turn.

    z_e: [B, D, *S], the level's Z̃ (for given codes what they stand for)
    quantized: what came of it
    """

    z_e: Tensor
    quantized: Quantized


class Level(nn.Module):
    """One resolution without anything above it: the paper's *first* layer, and residual ones.

        Z̃ = W h        latent = Σ_l Z_l

    Args:
        quantizer: the stack of this level's layers
        project_in: features (for `ConcatLevel` with the prediction beside them) → Z̃

    Shape:
        features [B, W, *S] → z_e [B, D, *S]
    """

    def __init__(self, quantizer: ResidualQuantizer, project_in: nn.Module):
        super().__init__()
        self.quantizer = quantizer
        self.project = project_in

    def predict(self, latent_above: Tensor | None) -> Tensor | None:
        """The top-down prediction [B, D, *S] from the latent above; None at the coarsest level."""
        return None

    def project_in(self, features: Tensor, prediction: Tensor | None) -> Tensor:
        """Z̃ [B, D, *S]: what the level's layers are to quantize."""
        return self.project(features)

    def latent(self, prediction: Tensor | None, z: Tensor | None) -> Tensor:
        """prediction + z; the prediction alone for a level that is left out."""
        if prediction is None:
            assert z is not None  # only levels below a decoded one are left out
            return z
        return prediction if z is None else prediction + z

    @torch.no_grad()
    def init_scale(self, z_e: Float[Tensor, "B D *S"]) -> Tensor:
        """Scale `project` so that this batch's z_e has mean 0 and variance 1; changes state.

        Untrained features hardly vary. A decoder that hardly sees its codes lets the entropy term
        dominate, and the posterior becomes uniform. Data-dependent initialisation as in weight
        normalisation (Salimans and Kingma, NeurIPS 2016, sec. 3). Returns the scaled z_e. Raises
        DegenerateFeatures for features that are all the same or not finite.
        """
        axes = [0, *range(2, z_e.ndim)]
        mean = z_e.mean(axes)
        deviation = z_e.var(axes, correction=0).sqrt()
        if not torch.isfinite(deviation).all() or not deviation.any():
            raise DegenerateFeatures(
                "the untrained features of the first batch are constant or not finite"
            )
        deviation = deviation.clamp(min=1e-12)
        weight, bias = self.project.weight, self.project.bias
        assert isinstance(weight, Tensor) and isinstance(bias, Tensor)
        weight.div_(deviation.view(-1, *[1] * (weight.ndim - 1)))
        bias.sub_(mean).div_(deviation)
        shape = (1, -1) + (1,) * (z_e.ndim - 2)
        return (z_e - mean.view(shape)) / deviation.view(shape)


class PredictionLevel(Level):
    """A level below another that codes the error of a learned top-down prediction E. Ours:

        Z̃ = W h − E(state)        latent = E(state) + Σ_l Z_l

    a special case of the paper's G(h, state). E starts at zero: in the continuous phase the finest
    level is then unaffected by it, and the progressive term trains E.

    Args:
        quantizer, project_in: as for `Level`
        top_down: the latent above [B, D', *S'] → prediction [B, D, *S]
    """

    def __init__(self, quantizer: ResidualQuantizer, project_in: nn.Module, top_down: nn.Module):
        super().__init__(quantizer, project_in)
        self.top_down = top_down

    def predict(self, latent_above: Tensor | None) -> Tensor | None:
        return self.top_down(latent_above)

    def project_in(self, features: Tensor, prediction: Tensor | None) -> Tensor:
        assert prediction is not None
        detach = self.quantizer.posterior.detach_residual
        return self.project(features) - (prediction.detach() if detach else prediction)


class ConcatLevel(PredictionLevel):
    """A level below another as ports of the paper have it: state and features concatenated.

        Z̃ = W [h, U(state)]        latent = U(state) + Σ_l Z_l

    with U the upsampled latent above: a learned network here (ours), as E is. Arguments as for
    `PredictionLevel`; `project_in` takes W + D channels.
    """

    def project_in(self, features: Tensor, prediction: Tensor | None) -> Tensor:
        assert prediction is not None
        return self.project(torch.cat([features, prediction], 1))


Source = Callable[[int, Level, Tensor | None], LevelOutput | None]


def walk(
    levels: Iterable[Level], source: Source
) -> tuple[Float[Tensor, "B D ..."], list[LevelOutput]]:
    """Visit the levels coarse to fine: (the latent of the finest, the outputs of the levels).

    `source(index, level, prediction)` gives a level's output. None leaves the level out: its
    latent is then the prediction alone.
    """
    latent: Tensor | None = None
    outputs: list[LevelOutput] = []
    for index, level in enumerate(levels):
        prediction = level.predict(latent)
        output = source(index, level, prediction)
        latent = level.latent(prediction, None if output is None else output.quantized.z)
        if output is not None:
            outputs.append(output)
    assert latent is not None
    return latent, outputs


# -------------------------------------------------------------------------- sources


@dataclass(frozen=True)
class RelaxedSample:
    """From the features: relaxed samples in training mode, nearest codes in evaluation mode."""

    features: Sequence[Tensor]
    noise: Noise
    temperature: Tensor | float = 1.0

    def __call__(self, index: int, level: Level, prediction: Tensor | None) -> LevelOutput:
        z_e = level.project_in(self.features[index], prediction)
        return LevelOutput(z_e, level.quantizer(z_e, self.temperature, self.noise.fold(index)))


@dataclass(frozen=True)
class PosteriorSample:
    """From the features: true draws, Z̃ with the Gaussian noise of its level and hard codes."""

    features: Sequence[Tensor]
    noise: Noise

    def __call__(self, index: int, level: Level, prediction: Tensor | None) -> LevelOutput:
        z_e = level.project_in(self.features[index], prediction)
        return LevelOutput(z_e, level.quantizer.sample(z_e, self.noise.fold(index)))


@dataclass(frozen=True)
class NearestCodes:
    """From the features: nearest codes, in either mode.

    rate_weight: of a learned prior, in place of its own
    """

    features: Sequence[Tensor]
    rate_weight: float | None = None

    def __call__(self, index: int, level: Level, prediction: Tensor | None) -> LevelOutput:
        z_e = level.project_in(self.features[index], prediction)
        codes = level.quantizer.encode(z_e, rate_weight=self.rate_weight)
        return LevelOutput(z_e, level.quantizer.given(codes, check=False))


@dataclass(frozen=True)
class GivenCodes:
    """Given codes `[B, k, *S]` of the first levels, k ≤ L; further levels are left out.

    Fewer layers or levels than the model has are a coarser decode.
    """

    codes: Sequence[Int[Tensor, "B _ ..."]]

    def __call__(self, index: int, level: Level, prediction: Tensor | None) -> LevelOutput | None:
        if index >= len(self.codes):
            return None
        quantized = level.quantizer.given(self.codes[index])
        return LevelOutput(quantized.z, quantized)


@dataclass(frozen=True)
class FirstLayers:
    """Outputs of an earlier walk, gradients and all, with the layers whose `kept` is 0 as zeros.

    A mask and no count: a number of layers that changes from step to step would make
    torch.compile start again.

    kept: [L], one number for each layer of all levels
    """

    outputs: Sequence[LevelOutput]
    kept: Tensor

    def __call__(self, index: int, level: Level, prediction: Tensor | None) -> LevelOutput:
        output = self.outputs[index]
        first = sum(len(above.quantized.layers) for above in self.outputs[:index])
        z = sum(z_l * self.kept[first + layer] for layer, z_l in enumerate(output.quantized.layers))
        assert isinstance(z, Tensor)
        return output._replace(quantized=replace(output.quantized, z=z))


@dataclass(frozen=True)
class Continuous:
    """Z = Z̃: features pass as they are, and nothing is left for residual layers."""

    features: Sequence[Tensor]

    def __call__(self, index: int, level: Level, prediction: Tensor | None) -> LevelOutput:
        return _continuous(level, level.project_in(self.features[index], prediction))


# ---------------------------------------------------------------------------- verbs


@torch.no_grad()
def init_scale(levels: Iterable[Level], features: Sequence[Tensor]) -> None:
    """Scale every level's Z̃ to mean 0 and variance 1 on these features; changes state."""

    def scaled(index: int, level: Level, prediction: Tensor | None) -> LevelOutput:
        z_e = level.init_scale(level.project_in(features[index], prediction))
        return _continuous(level, z_e)

    walk(levels, scaled)


@torch.no_grad()
def init_codebooks(
    levels: Iterable[Level],
    features: Sequence[Tensor],
    noise: Noise,
    steps: int = 1,
    refine: bool = False,
) -> None:
    """Start all codebooks and s² from these features, level by level; changes state.

    `steps` says of how many steps' batches they are. `refine` moves the codebooks on from where
    they are instead (`ResidualQuantizer.refine`).
    """

    def start(index: int, level: Level, prediction: Tensor | None) -> LevelOutput:
        z_e = level.project_in(features[index], prediction)
        verb = level.quantizer.refine if refine else level.quantizer.init
        z = verb(z_e, noise.fold(Stream.INIT).fold(index), steps)
        output = _continuous(level, z_e)
        return output._replace(quantized=replace(output.quantized, z=z))

    walk(levels, start)


def _continuous(level: Level, z_e: Tensor) -> LevelOutput:
    layers = len(level.quantizer.codebooks)
    codes = torch.zeros(len(z_e), layers, *z_e.shape[2:], dtype=torch.long, device=z_e.device)
    zeros = z_e.new_zeros(len(z_e), layers, dtype=torch.float32)
    rest = [torch.zeros_like(z_e)] * (layers - 1)
    return LevelOutput(z_e, Quantized(z_e, codes, zeros, zeros[:, 0], (z_e, *rest)))
