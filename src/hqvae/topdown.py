"""The two kinds of layer, and the one walk over them.

    injected    Z̃_l = G_φ^l(h^r) − E^l(state)                first layer of a level: its features, less what is to be expected from above
    residual    Z̃_l = Z̃_first − Σ_{l' before it} Z_l'        further layers: what the level's codes so far have missed

A level's latent is E^l(state) + Σ Z_l: whatever the levels above have got wrong, this one is asked to put right.

The walk visits the layers coarse to fine. What a layer's z is comes from a *source*: the posterior (train, encode), given
latents (decode; fewer latents than layers are a coarser decode), or a draw. There is no other loop over layers.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from hqvae.errors import DegenerateFeatures
from hqvae.nets import CONV, NetConfig, grow, reductions, res_blocks
from hqvae.quantize import (
    AnyQuantizer,
    Noise,
    OwnStart,
    Quantized,
    StochasticQuantizer,
    nearest_sum,
    rows_of,
)


@dataclass(frozen=True)
class State:
    """What has been decided so far.

    Shape:
        expected: [B, D, *S], what the levels above let this one expect, at its resolution (None at the coarsest)
        target: [B, D, *S], Z̃_first of this level (None before its first layer)
        chosen: [B, D, *S], Σ Z_l of this level's layers so far (None before its first)
        decided: [B, *S] each, codes that are known already of this level's next layers
    """

    expected: Tensor | None = None
    target: Tensor | None = None
    chosen: Tensor | None = None
    decided: tuple[Tensor, ...] = ()

    @property
    def latent(self) -> Tensor:
        """[B, D, *S], the level's latent as it is so far."""
        if self.expected is not None and self.chosen is not None:
            return self.expected + self.chosen
        latent = self.chosen if self.expected is None else self.expected
        assert latent is not None  # only levels below a decided one are ever skipped
        return latent


@dataclass(frozen=True)
class Step:
    """One layer's turn: what it was asked to quantize (given codes stand for themselves), and what came of it.

    `ahead` are codes [B, *S] of its level's next layers, where they were found together with this one's.
    """

    z_e: Tensor
    quantized: Quantized
    ahead: tuple[Tensor, ...] = ()


class Settle(nn.Module):
    """The canvas `[B, W, *S]` that a level's latent is drawn as."""

    def __init__(self, axes: int, dim: int, width: int):
        super().__init__()
        self.draw = CONV[axes](dim, width, 3, padding=1)

    def forward(self, state: State) -> Tensor:
        return self.draw(state.latent)


class Layer(nn.Module):
    """What the two kinds share: the level they belong to, and how a chosen z enters the state."""

    level: int
    quantizer: AnyQuantizer

    def __init__(self, level: int, quantizer: AnyQuantizer):
        super().__init__()
        self.level, self.quantizer = level, quantizer

    def enter(self, state: State) -> State:
        """The state brought to this layer's resolution; as it is, unless the layer opens a level."""
        return state

    @abstractmethod
    def query(self, state: State, features: Sequence[Tensor]) -> Tensor:
        """z_e [B, D, *S]: what to quantize."""

    def absorb(self, state: State, z_e: Tensor, z: Tensor) -> State:
        """The state after z has been chosen; the level's first z_e is remembered as its target."""
        target = z_e if state.target is None else state.target
        return replace(state, target=target, chosen=z if state.chosen is None else state.chosen + z)


class Residual(Layer):
    """Asks for what is missed: Z̃_first − Σ Z so far. Adds nothing of its own, not a single parameter but the quantizer's."""

    def query(self, state: State, features: Sequence[Tensor]) -> Tensor:
        assert state.target is not None and state.chosen is not None
        return state.target - (state.chosen.detach() if self.quantizer.detached else state.chosen)


class Injected(Layer):
    """Opens a level: asks for its features, less what the levels above let it expect of them.

    E is drawn from the canvas above and begins as zero. While latents pass as they are it makes no difference to the finest one, so a
    hierarchy learns as fast as a single level does; a coarser reconstruction, which has nothing else, teaches it (docs/levers.md).

    Args:
        level: index of the level, 0 the coarsest
        axes, net: as for the networks
        widths: channels of the features of this level, of its canvas, and of the canvas above (None at the coarsest)
        above: (code dimension, stride ratio) of the level above, None at the coarsest
    """

    def __init__(
        self, level: int, quantizer: AnyQuantizer, axes: int, net: NetConfig, widths: tuple[int, int], above: tuple[Settle, int, int] | None
    ):
        super().__init__(level, quantizer)
        features, width = widths
        self.settle: Settle | None = None
        self.expect: nn.Sequential | None = None
        if above is not None:
            self.settle, ratio, coarse = above
            steps: list[nn.Module] = [*res_blocks(axes, coarse, net, net.blocks)]
            for i, factor in enumerate(reductions(ratio, net.factor)):
                steps += [net.active(), grow(axes, width if i else coarse, width, factor)]
            last = CONV[axes](width, quantizer.dim, 3, padding=1)
            for values in last.parameters():
                nn.init.zeros_(values)
            self.expect = nn.Sequential(*steps, net.active(), last)
        self.to_code = CONV[axes](features, quantizer.dim, 1)

    def enter(self, state: State) -> State:
        if self.settle is None or self.expect is None:
            return State()
        return State(expected=self.expect(self.settle(state)))

    def query(self, state: State, features: Sequence[Tensor]) -> Tensor:
        asked = self.to_code(features[self.level])
        if state.expected is None:
            return asked
        return asked - (state.expected.detach() if self.quantizer.detached else state.expected)

    @torch.no_grad()
    def normalise(self, z_e: Tensor) -> Tensor:
        """Scale `to_code` so that this batch's z_e has mean 0 and variance 1 in every dimension; returns that z_e.

        Untrained features hardly vary, and a decoder that hardly sees its codes lets the entropy term win: P̂ goes uniform.
        Raises DegenerateFeatures for features that are all the same or not finite.
        """
        axes = [0, *range(2, z_e.ndim)]
        mean, deviation = z_e.mean(axes), z_e.var(axes, correction=0).sqrt()
        if not torch.isfinite(deviation).all() or not deviation.any():
            raise DegenerateFeatures("the untrained features of the first batch are constant or not finite")
        deviation = deviation.clamp(min=1e-12)
        shape = (1, -1) + (1,) * (z_e.ndim - 2)
        self.to_code.weight.div_(deviation.view(-1, *[1] * (z_e.ndim - 1)))
        assert self.to_code.bias is not None
        self.to_code.bias.sub_(mean).div_(deviation)
        return (z_e - mean.view(shape)) / deviation.view(shape)


Source = Callable[[int, Layer, State], Step | None]


def walk(layers: Iterable[Layer], source: Source) -> tuple[State, list[Step]]:
    """Visit the layers coarse to fine; returns the state below the last one, and the steps of the layers that had one.

    A source that has nothing for a layer returns None: the layer leaves the state as it is, only brought to its resolution.
    """
    state, steps = State(), []
    for index, layer in enumerate(layers):
        state = layer.enter(state)
        step = source(index, layer, state)
        if step is not None:
            state = replace(layer.absorb(state, step.z_e, step.quantized.z), decided=step.ahead)
            steps.append(step)
    return state, steps


@dataclass(frozen=True)
class Search:
    """Which codes are the nearest ones: layer by layer (`width` 1), or those of a level's layers together.

    What a level's layers stand for is their sum. The posterior of all of them given Z̃ has, for s² → 0, its mass where
    ‖Z̃ − Σ_l Z_l‖² is least; a layer that takes what is nearest to it alone need not leave the next ones there.
    """

    layers: Iterable[Layer]
    width: int = 1

    def __call__(self, layer: Layer, state: State, z_e: Tensor) -> tuple[Tensor, ...]:
        """Codes [B, *S] of this layer, and of as many next ones of its level as are known with it."""
        if state.decided:
            return state.decided
        books = self._books(layer)
        if not books:
            return (layer.quantizer.nearest(z_e),)
        codes = beam_search(rows_of(z_e), books, self.width)
        return tuple(of_layer.reshape(len(z_e), *z_e.shape[2:]) for of_layer in codes.unbind(1))

    def settle(self, layer: Layer, state: State, z_e: Tensor, quantized: Quantized) -> Step:
        """The step of a layer whose codes are nearest ones, `quantized` layer by layer, with those of the search in their place."""
        if not self._books(layer):
            return Step(z_e, quantized)
        codes, *ahead = self(layer, state, z_e)
        return Step(z_e, replace(quantized, codes=codes, z=layer.quantizer.embed(codes)), tuple(ahead))

    def _books(self, layer: Layer) -> list[Tensor]:
        """The codebooks of the layer's level, where they are searched together; else none."""
        mates = [one for one in self.layers if one.level == layer.level] if self.width > 1 else []
        return [one.quantizer.codebook for one in mates] if len(mates) > 1 else []


@dataclass(frozen=True)
class Posterior:
    """Codes from the signal's features: a relaxed sample in training mode, the nearest code in evaluation mode."""

    features: Sequence[Tensor]
    search: Search
    temperature: Tensor | float = 1.0
    noise: Noise | None = None

    def __call__(self, index: int, layer: Layer, state: State) -> Step:
        z_e = layer.query(state, self.features)
        noise = self.noise.fold(index) if self.noise is not None else None
        quantized = layer.quantizer(z_e, self.temperature, noise)
        return Step(z_e, quantized) if layer.training else self.search.settle(layer, state, z_e, quantized)


@dataclass(frozen=True)
class Draw:
    """A true draw from the posterior: Z̃_first with the Gaussian noise of its level, every Z_l a hard sample of its P̂."""

    features: Sequence[Tensor]
    search: Search
    noise: Noise
    spread: Sequence[Tensor]  # of every level: sqrt(Σ s_l²)

    def __call__(self, index: int, layer: Layer, state: State) -> Step:
        z_e, noise = layer.query(state, self.features), self.noise.fold(index)
        if state.target is None:
            z_e = z_e + self.spread[layer.level] * noise.fold(Stream.GAUSSIAN).gaussian(z_e)
        drawn = layer.quantizer.draw(z_e, noise)
        return Step(z_e, drawn) if isinstance(layer.quantizer, StochasticQuantizer) else self.search.settle(layer, state, z_e, drawn)


@dataclass(frozen=True)
class Nearest:
    """Nearest codes from the signal's features, in either mode."""

    features: Sequence[Tensor]
    search: Search

    def __call__(self, index: int, layer: Layer, state: State) -> Step:
        z_e = layer.query(state, self.features)
        codes, *ahead = self.search(layer, state, z_e)
        return Step(z_e, _looked_up(layer, codes), tuple(ahead))


@dataclass(frozen=True)
class Codes:
    """Given codes, layer by layer; layers past their end are left out, which decodes from the first ones only."""

    codes: Sequence[Tensor]

    def __call__(self, index: int, layer: Layer, state: State) -> Step | None:
        if index >= len(self.codes):
            return None
        quantized = _looked_up(layer, self.codes[index])
        return Step(quantized.z, quantized)


@dataclass(frozen=True)
class Given:
    """Steps already taken, gradients and all, of which those of layers with `kept` [L] of 0 count as zeros: as if left out."""

    steps: Sequence[Step]
    kept: Tensor

    def __call__(self, index: int, layer: Layer, state: State) -> Step:
        step = self.steps[index]
        return replace(step, quantized=replace(step.quantized, z=step.quantized.z * self.kept[index]))


@dataclass(frozen=True)
class Unquantized:
    """Z = Z̃: features pass as they are, so that nothing is left for residual layers. The autoencoder alone.

    With `normalise`, every level's features are first scaled to mean 0 and variance 1; changes the layers.
    """

    features: Sequence[Tensor]
    normalise: bool = False

    def __call__(self, index: int, layer: Layer, state: State) -> Step:
        z_e = layer.query(state, self.features)
        if self.normalise and isinstance(layer, Injected):
            z_e = layer.normalise(z_e)
        # A gradient of zero for the quantizer's parameters: DDP waits for one of every parameter.
        nothing = z_e.new_zeros(len(z_e)) + sum(0.0 * p.sum() for p in layer.quantizer.parameters())
        codes = torch.zeros(len(z_e), *z_e.shape[2:], dtype=torch.long, device=z_e.device)
        return Step(z_e, Quantized(z_e, codes, nothing, layer.quantizer.variance, nothing))


@dataclass(frozen=True)
class Starting:
    """Gives every quantizer its start from what it is to quantize, then goes on with its relaxed sample."""

    features: Sequence[Tensor]
    noise: Noise
    started: set[int]  # codebooks that have had their start: layers that share one start it once
    steps: int = 1  # whose batches the features are

    def __call__(self, index: int, layer: Layer, state: State) -> Step:
        z_e = layer.query(state, self.features)
        noise = self.noise.fold(index)
        layer.quantizer.start_from(z_e, noise, id(layer.quantizer.codebook) in self.started, self.steps)
        self.started.add(id(layer.quantizer.codebook))
        return Step(z_e, layer.quantizer(z_e, 1.0, noise))


def left_alone(layers: Iterable[Layer]) -> set[int]:
    """Codebooks that no start from their own codes moves: one that layers share would go to what the first of them is given."""
    starts = [(id(layer.quantizer.codebook), getattr(layer.quantizer.config, "start", None)) for layer in layers]
    own = [book for book, start in starts if isinstance(start, OwnStart)]
    return {book for book in own if own.count(book) > 1}


def _looked_up(layer: Layer, codes: Tensor) -> Quantized:
    nothing = torch.zeros((), device=codes.device)
    return Quantized(layer.quantizer.lookup(codes), codes, nothing.expand(len(codes)), nothing)
