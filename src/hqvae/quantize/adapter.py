"""Our quantizers behind the calls of vector-quantize-pytorch: `(quantized, indices, loss)`."""

from dataclasses import replace
from functools import cache
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hqvae.ranks import broadcast

from .noise import Noise, Stream
from .posterior import KMeansInit, NearestCodeConfig
from .residual import QuantizerConfig, ResidualQuantizer

TEMPERATURE = (1.0, 0.3)  # of relaxed samples: at the first step, and from `anneal_steps` on
DROP_IN = NearestCodeConfig(beta=1.0, decay=0.9, restart=True, init=KMeansInit())
_SEED = 0  # of k-means and restarts: every process must draw the same


class _DropIn(nn.Module):
    """A `ResidualQuantizer` that does by itself, in training mode, what changes its state.

    It starts from the first batch, counts steps for its temperature, and moves codebooks of
    running averages. Evaluation mode changes nothing.
    """

    def __init__(
        self, quantizer: ResidualQuantizer, channel_last: bool, loss: str, anneal_steps: int
    ):
        super().__init__()
        _keep_out_of_graphs()
        if loss not in ("mse", "nats"):
            raise ValueError(f"loss is {loss!r}; expected 'mse' or 'nats'")
        if loss == "nats" and not quantizer.posterior.in_nats:
            raise ValueError(
                "loss='nats' needs a quantizer whose codes have a posterior: GumbelSoftmaxConfig()"
            )
        if anneal_steps < 1:
            raise ValueError(f"anneal_steps is {anneal_steps}; expected at least 1")
        self.quantizer = quantizer
        self.channel_last = channel_last
        self.loss = loss
        self.anneal_steps = anneal_steps
        self.steps = 0  # batches of training; 0 before the start
        self._other: list[Tensor] = []  # vectors before the last move, or after it in a second pass

    @property
    def temperature(self) -> float:
        """τ of the next relaxed sample: from 1 to 0.3, exponentially over `anneal_steps` steps."""
        start, end = TEMPERATURE
        return start * (end / start) ** min(1.0, self.steps / self.anneal_steps)

    @property
    def codebook(self) -> Float[Tensor, "K D"]:
        """The vectors of the first layer."""
        return self.quantizer.codebooks[0].vectors

    def get_extra_state(self) -> Tensor:
        """The number of steps, a tensor: every format of weights can hold one."""
        return torch.tensor(self.steps)

    def set_extra_state(self, state: Any) -> None:
        self.steps = int(state)

    def forward(
        self, z: Float[Tensor, "B ..."]
    ) -> tuple[Float[Tensor, "B ..."], Int[Tensor, "B ..."], Float[Tensor, ""]]:
        z_e = self._channels_second(z)
        temperature = self._temperature_of_step(z_e.detach()) if self.training else 1.0
        out = self.quantizer(z_e, temperature)
        loss = (out.latent_loss - out.entropy.sum(1)).mean()
        if self.loss == "mse" and self.quantizer.posterior.in_nats:
            per_element = 2 * self.quantizer.posterior.variance.sum() / max(1, z_e[:1].numel())
            loss = loss * per_element.detach()
        if self.training:
            self._learn(z_e.detach(), out.codes)
        return self._channels_back(out.z).to(z.dtype), self._codes_out(out.codes), loss

    def get_output_from_indices(self, indices: Int[Tensor, "B ..."]) -> Float[Tensor, "B ..."]:
        """The vectors that the indices stand for, laid out as the input is."""
        return self._channels_back(self.quantizer.lookup(self._codes_in(indices)))

    # The number of steps stays out of compiled graphs, which would be made anew for each.

    def _temperature_of_step(self, z_e: Tensor) -> Tensor:
        if _is_second_pass():
            self.steps -= 1
            self._exchange_vectors()
        elif not self.steps:
            self._start(z_e)
        return torch.tensor(self.temperature)

    def _learn(self, z_e: Tensor, codes: Tensor) -> None:
        if _is_second_pass():
            self._exchange_vectors()
        elif not self.quantizer.posterior.gradient_moves_codes:
            self._other = [vectors.clone() for vectors in self._vectors()]
            self.quantizer.update(z_e, codes, Noise.of(_SEED, self.steps, Stream.RESTART))
        self.steps += 1

    def _vectors(self) -> list[Tensor]:
        """Of every codebook once, without gradient."""
        return [codebook.vectors.detach() for codebook in dict.fromkeys(self.quantizer.codebooks)]

    def _exchange_vectors(self) -> None:
        """Between those that the last forward pass quantized with and those that it moved to."""
        for vectors, other in zip(self._vectors() if self._other else [], self._other):
            kept = vectors.clone()
            vectors.copy_(other)
            other.copy_(kept)

    def _start(self, z_e: Tensor) -> None:
        """k-means of the first process's first batch, the same in every process."""
        self.quantizer.init(z_e, Noise.of(_SEED, Stream.INIT))
        with torch.no_grad():
            for values in self.quantizer.state_dict().values():
                values.copy_(broadcast(values))

    def _channels_second(self, z: Tensor) -> Tensor:
        axis = -1 if self.channel_last else 1
        if z.ndim < 2 or z.shape[axis] != self.quantizer.dim:
            width = self.quantizer.dim
            layout = f"[B, *S, {width}]" if self.channel_last else f"[B, {width}, *S]"
            raise ValueError(
                f"the input has shape {list(z.shape)}; this quantizer expects {layout} "
                f"(channel_last={self.channel_last})"
            )
        return z.movedim(axis, 1)

    def _channels_back(self, z: Tensor) -> Tensor:
        return z.movedim(1, -1) if self.channel_last else z

    def _codes_out(self, codes: Tensor) -> Tensor:
        return codes.movedim(1, -1)

    def _codes_in(self, indices: Tensor) -> Tensor:
        return indices.movedim(-1, 1)


# Their names for fields of a config.
_THEIRS = {"decay": "decay", "commitment_weight": "beta"}


def _with_theirs(config: QuantizerConfig, options: dict[str, Any]) -> QuantizerConfig:
    """The config with options of vector-quantize-pytorch that stand for one of its fields.

    Raises TypeError for others, and where the config has no such field.
    """
    options = {name: value for name, value in options.items() if name != "kmeans_init"}
    for name, value in options.items():
        field = _THEIRS.get(name)
        if field is None or not isinstance(config, NearestCodeConfig):
            raise TypeError(
                f"there is no {name}={value!r} here; docs/api.md says what stands for options of "
                "vector-quantize-pytorch"
            )
        config = replace(config, **{field: value})
    return config


@cache
def _keep_out_of_graphs() -> None:
    """With the first of them, and not when this is imported: the compiler takes seconds to load."""
    for name in ("_temperature_of_step", "_learn"):
        setattr(_DropIn, name, torch.compiler.disable(getattr(_DropIn, name)))


def _is_second_pass() -> bool:
    """Whether a backward pass runs this again, as gradient checkpoints do."""
    return torch._C._current_graph_task_id() != -1


class VectorQuantize(_DropIn):
    """A drop-in for `VectorQuantize` of vector-quantize-pytorch: one codebook, in any network.

        quantize = VectorQuantize(dim=64, codebook_size=512)
        quantized, indices, commit_loss = quantize(features)
        loss = F.mse_loss(decoder(quantized), x) + commit_loss

    It needs no other call. In training mode it starts with the k-means of its first batch, moves
    its codes by running averages and puts unused ones back on features. In evaluation mode it
    changes nothing. A state dict holds its codes and whether it has started.

    The loss is the mean squared distance of features from their codes, times β = 1. Such is the
    unit of a mean squared error, so the sum above is right as it is.

    With `config=GumbelSoftmaxConfig()` it passes on relaxed samples, which learn with their s².
    Their temperature falls from 1 to 0.3, exponentially over `anneal_steps` batches, and stays
    there. The loss is ‖z̃ − z‖²/2s² − H in nats per sample, times 2s²/(elements of a sample's
    features): once more a mean squared error. With `loss="nats"` it is the nats as they are, to go
    with a reconstruction loss in nats: Σ(x − x̂)²/2σ² per sample.

    Args:
        dim: width D of a feature and a code
        codebook_size: K ≥ 2
        config: how codes are chosen, and how they move
        channel_last: whether inputs are [B, *S, D]; else they are [B, D, *S]
        accept_image_fmap: their word for `channel_last=False`
        loss: "mse", or "nats" for a stochastic config
        anneal_steps: batches in which the temperature falls
        theirs: `decay`, `commitment_weight` and `kmeans_init`, which is always so

    Shape:
        [B, *S, D] or [B, D, *S] → quantized of the same shape and dtype, indices [B, *S], loss []

    Raises ValueError for inputs of another width, DegenerateFeatures for a first batch whose
    features are all the same or not finite.

    >>> encoder, decoder = nn.Conv2d(3, 64, 4, 4), nn.ConvTranspose2d(64, 3, 4, 4)
    >>> quantize = VectorQuantize(dim=64, codebook_size=16, channel_last=False)
    >>> x = torch.rand(8, 3, 32, 32)
    >>> quantized, indices, commit_loss = quantize(encoder(x))
    >>> loss = nn.functional.mse_loss(decoder(quantized), x) + commit_loss
    >>> quantized.shape, indices.shape, loss.shape
    (torch.Size([8, 64, 8, 8]), torch.Size([8, 8, 8]), torch.Size([]))
    """

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        config: QuantizerConfig = DROP_IN,
        channel_last: bool = True,
        accept_image_fmap: bool = False,
        loss: str = "mse",
        anneal_steps: int = 10_000,
        **theirs: Any,
    ):
        quantizer = ResidualQuantizer(dim, codebook_size, config=_with_theirs(config, theirs))
        super().__init__(quantizer, channel_last and not accept_image_fmap, loss, anneal_steps)

    def get_codes_from_indices(self, indices: Int[Tensor, "B ..."]) -> Float[Tensor, "B ..."]:
        """Their other name of it."""
        return self.get_output_from_indices(indices)

    def _codes_out(self, codes: Tensor) -> Tensor:
        return codes[:, 0]

    def _codes_in(self, indices: Tensor) -> Tensor:
        return indices.unsqueeze(1)


class ResidualVQ(_DropIn):
    """A drop-in for `ResidualVQ` of vector-quantize-pytorch: each layer on what those before left.

    As `VectorQuantize`, with `num_quantizers` layers; `anneal_steps` is an attribute. The
    commitment is the mean over the layers, and one number, where theirs has one for each.

    Args:
        num_quantizers: L ≥ 1
        shared_codebook: whether the layers hold one codebook
        beam_size: how many partial sums evaluation keeps when it looks for codes

    Shape:
        [B, *S, D] or [B, D, *S] → quantized of the same shape, indices [B, *S, L], loss []

    >>> quantize = ResidualVQ(dim=64, codebook_size=16, num_quantizers=4)
    >>> quantized, indices, commit_loss = quantize(torch.randn(2, 100, 64))
    >>> quantized.shape, indices.shape
    (torch.Size([2, 100, 64]), torch.Size([2, 100, 4]))
    """

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        num_quantizers: int,
        config: QuantizerConfig = DROP_IN,
        shared_codebook: bool = False,
        beam_size: int = 1,
        accept_image_fmap: bool = False,
        loss: str = "mse",
        **theirs: Any,
    ):
        config = _with_theirs(config, theirs)
        quantizer = ResidualQuantizer(
            dim, codebook_size, num_quantizers, config, shared_codebook, beam_size
        )
        super().__init__(quantizer, not accept_image_fmap, loss, anneal_steps=10_000)
