"""HQVAE: features up, codes down, signal out; and its way to disk and back.

Shape key: **B** batch, **C** signal channels, **D** width of a code, **\\*S** space (H W, or T), **K** codebook size, **L** layers.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Float, Int
from pydantic import TypeAdapter
from safetensors import safe_open
from safetensors.torch import load_model, save_model
from torch import Tensor, nn

from hqvae.errors import summary_of
from hqvae.likelihood import FittedGaussian, MeanSquare
from hqvae.nets import Decoder, Encoder, ending, inside, reductions, start_at_zero
from hqvae.objective import Bound, Elbo
from hqvae.quantize import (
    QUANTIZERS,
    EMAQuantizer,
    Noise,
    Quantized,
    StochasticConfig,
    StochasticQuantizer,
    rows_and_codes,
)
from hqvae.topdown import (
    Codes,
    Draw,
    Given,
    Injected,
    Layer,
    Nearest,
    Posterior,
    Residual,
    Search,
    Settle,
    Starting,
    State,
    Step,
    Unquantized,
    left_alone,
    walk,
)

from .family import HQVAEConfig


class HQVAE(nn.Module):
    """Hierarchically quantized autoencoder; `config` says which member of the family.

    >>> model = HQVAE(HQVAEConfig(levels=(Level(stride=8), Level(stride=4))))
    >>> codes = model.eval().encode(torch.zeros(1, 3, 32, 32))
    >>> [tuple(c.shape) for c in codes], tuple(model.decode(codes).shape)
    ([(1, 4, 4), (1, 8, 8)], (1, 3, 32, 32))
    """

    layers: Sequence[Layer]  # an nn.ModuleList

    def __init__(self, config: HQVAEConfig = HQVAEConfig()):
        super().__init__()
        self.config = config
        axes, net, levels = config.axes, config.net, config.levels
        self.encoder = Encoder(axes, config.channels, [level.stride for level in levels], net)
        layers: list[Layer] = []
        above: tuple[Settle, int, int] | None = None
        for r, level in enumerate(levels):
            width = net.width(len(reductions(level.stride, net.factor))) if level.stride > 1 else net.widths[0]
            quantizer = QUANTIZERS[config.quantizer.kind](level.dim, level.codebook_size, config.quantizer)
            layers.append(Injected(r, quantizer, axes, net, (self.encoder.widths[r], width), above))
            for _ in range(level.layers - 1):
                further = quantizer.sibling() if level.shared else type(quantizer)(level.dim, level.codebook_size, config.quantizer)
                layers.append(Residual(r, further))
            settle = Settle(axes, level.dim, width)
            if r + 1 < len(levels):
                above = settle, level.stride // levels[r + 1].stride, width
        self.layers = nn.ModuleList(layers)  # type: ignore[assignment]
        self.settle = settle
        self.decoder = Decoder(axes, config.channels, levels[-1].stride, net)
        if net.zero_start:
            start_at_zero(self)
        self.likelihood = FittedGaussian() if config.quantizer.kind == "stochastic" else MeanSquare()

    # ------------------------------------------------------------------------------------------------ training

    def forward(
        self,
        x: Float[Tensor, "B C *S"],
        temperature: Tensor | float = 1.0,
        noise: Noise | None = None,
        sigma2: Tensor | None = None,
        features: Sequence[Tensor] | None = None,
        quantized: bool = True,
    ) -> Elbo:
        """The objective's terms for a batch of signals in [−1, 1].

        Args:
            x: signals
            temperature: τ of the relaxed samples
            noise: place in the stream of noise; drawn from torch's generator when not given
            sigma2: `Elbo.sigma2` of the global batch, when it is known from a first pass (accumulated batches)
            features: `features(x)`, where they are known already
            quantized: False for the autoencoder alone: latents pass as they are, all codes are 0, latent terms are zero
        """
        if noise is None:
            noise = Noise.draw() if self.training else Noise(torch.tensor(0))  # evaluation uses none
        features = features or self.features(x)
        state, steps = walk(self.layers, Posterior(features, self.search, temperature, noise) if quantized else Unquantized(features))
        reconstruction = self._signal(state, x.shape[2:])
        layers, size, views = [step.quantized for step in steps], x[0].numel(), self.config.spectral.views(x)
        distortions = self._distortions(x, views, reconstruction)
        seen = torch.stack([d.detach() / size for d in distortions[1:]], 1) if views else x.new_zeros(len(x), 0)
        if self.training and self.config.progressive and len(layers) > 1:
            # As a mask: a number of layers that changes from step to step would have torch.compile begin again and again.
            kept = torch.arange(len(layers), device=x.device) <= torch.as_tensor(noise.fold(Stream.PREFIX).seed, device=x.device) % (len(layers) - 1)
            coarser = walk(self.layers, Given(steps, kept.to(x.dtype)))[0]
            distortions += self._distortions(x, views, self._signal(coarser, x.shape[2:]))
        if sigma2 is None:
            sigma2 = torch.stack([FittedGaussian.variance(d, size, everywhere=self.training) for d in distortions])
        fit, entropy = torch.stack(self._by_level(steps, "fit"), 1), torch.stack([q.entropy for q in layers], 1)
        of_one, share = [1.0, *self.config.spectral.weights], self.likelihood.share(sigma2[0], sigma2[-1 - len(views)])
        weights = of_one + [self.config.progressive * share * weight for weight in of_one]
        costs = [w * self.likelihood(d, size, s) for w, d, s in zip(weights, distortions, sigma2)]
        return Elbo(
            loss=sum(costs) + fit.sum(1).mean() - entropy.sum(1).mean(),
            distortion=distortions[0].detach(),
            views=seen,
            fit=fit.detach(),
            entropy=entropy.detach(),
            variance=torch.stack([layer.quantizer.variance for layer in self.layers]).detach(),
            sigma2=sigma2,
            reconstruction=reconstruction.detach(),
            codes=tuple(q.codes for q in layers),
            z_e=tuple(step.z_e.detach() for step in steps),
            size=size,
            capacity=self.capacity(layers),
        )

    @torch.no_grad()
    def scale_from(self, x: Float[Tensor, "B C *S"]) -> None:
        """Scale every level's features to mean 0 and variance 1 on these signals; changes state."""
        walk(self.layers, Unquantized(self.features(x), normalise=True))

    @torch.no_grad()
    def start_from(self, x: Float[Tensor, "B C *S"], noise: Noise, at_once: int = 32, steps: int = 1) -> None:
        """Give codebooks and s² their start from the signals of `steps` steps, encoded so many at once, layer by layer; changes state."""
        parts = [self.features(part) for part in x.split(at_once)]
        walk(self.layers, Starting([torch.cat(level) for level in zip(*parts)], noise, left_alone(self.layers), steps))

    def harden(self, counts: Sequence[float] | None = None) -> None:
        """Take a stochastic system to its limit s² → 0, the deterministic system over the same codebooks; changes structure.

        Codes stay what they are; from here on gradients pass straight through, features commit to every partial sum, and codebooks move
        by averages that begin with each of a layer's codes chosen `counts[l]` times a step (once, where not given).
        """
        assert isinstance(self.config.quantizer, StochasticConfig)
        limits: dict[int, EMAQuantizer] = {}
        for index, layer in enumerate(self.layers):
            assert isinstance(layer.quantizer, StochasticQuantizer)
            limit = layer.quantizer.hardened(1.0 if counts is None else counts[index])
            layer.quantizer = limits.setdefault(id(layer.quantizer.codebook), limit)  # layers that share one go on sharing it
        self.config = replace(self.config, quantizer=self.config.quantizer.limit)
        self.likelihood = MeanSquare()

    @torch.no_grad()
    def update(self, z_e: Sequence[Tensor], codes: Sequence[Tensor], noise: Noise) -> int:
        """Move the codebooks that learn by moving averages, with what `Elbo` says was quantized; how many codes restarted.

        Changes state. For stochastic systems, whose codebooks learn by gradient, there is nothing to do.
        """
        groups: dict[EMAQuantizer, list[int]] = {}
        for index, layer in enumerate(self.layers):
            if isinstance(layer.quantizer, EMAQuantizer):
                groups.setdefault(layer.quantizer, []).append(index)
        restarted = 0
        for quantizer, indices in groups.items():
            rows, chosen = rows_and_codes([z_e[i] for i in indices], [codes[i] for i in indices])
            restarted += quantizer.update(rows, chosen, noise.fold(indices[0]))
        return restarted

    # ------------------------------------------------------------------------------------------------ codes

    @torch.no_grad()
    def encode(self, x: Float[Tensor, "B C *S"], lengths: Sequence[int] | None = None) -> tuple[Int[Tensor, "B ..."], ...]:
        """L tensors of nearest codes `[B, *S_l]`, coarse to fine, the same in training and evaluation mode.

        `lengths` says where each signal of a batch ends on the last axis: its codes are those that it has alone, whatever follows
        it in `x`, and 0 past ⌈length / coarsest stride⌉ coarsest positions. Raises ValueError for lengths that do not fit x.
        """
        if lengths is None:
            return tuple(step.quantized.codes for step in walk(self.layers, Nearest(self.features(x), self.search))[1])
        if len(lengths) != len(x) or not all(1 <= length <= x.shape[-1] for length in lengths):
            raise ValueError(f"lengths={list(lengths)}: expected {len(x)} from 1 to {x.shape[-1]}")
        ends, total = self._ends(lengths), -(-x.shape[-1] // self.stride)
        last = torch.tensor(lengths, device=x.device) - 1  # repeated past its end, as `features` pads a signal that is alone
        places = torch.arange(total * self.stride, device=x.device).minimum(last[:, None]).view(len(x), *[1] * (x.ndim - 2), -1)
        with ending(self, ends, total):
            codes = self.encode(x.gather(-1, places.expand(*x.shape[:-1], -1)))
        return tuple(code * inside(code, ends, total) for code in codes)

    @torch.no_grad()
    def decode(
        self,
        codes: Sequence[Int[Tensor, "B ..."]],
        layers: int | None = None,
        size: Sequence[int] | None = None,
        lengths: Sequence[int] | None = None,
    ) -> Float[Tensor, "B C ..."]:
        """Signals `[B, C, *S]` from the codes of all layers, or of the first `layers` ones.

        `size` is the signals' own size where it is no multiple of the coarsest stride; `lengths`, where each ends on the last axis:
        its samples are those that it has alone, and 0 past its end. Raises ValueError for a wrong number of layers or of lengths,
        or a code outside its codebook.
        """
        count = len(self.layers) if layers is None else layers
        if not 1 <= count <= len(self.layers) or len(codes) < count:
            raise ValueError(f"decoding {count} layers from {len(codes)} given; this model has {len(self.layers)}")
        if lengths is None:
            return self._signal(walk(self.layers, Codes(codes[:count]))[0], size)
        total = codes[0].shape[-1]  # of the coarsest level
        if len(lengths) != len(codes[0]) or not all(1 <= length <= total * self.stride for length in lengths):
            raise ValueError(f"lengths={list(lengths)}: expected {len(codes[0])} from 1 to {total * self.stride}")
        with ending(self, self._ends(lengths), total):
            x_hat = self.decode(codes, layers, size)
        return x_hat * inside(x_hat, torch.tensor(lengths), x_hat.shape[-1])

    @torch.no_grad()
    def bound(self, x: Float[Tensor, "B C *S"], noise: Noise, features: Sequence[Tensor] | None = None) -> Bound:
        """One draw of the true evidence bound: Z̃ with its Gaussian noise, Z a hard sample, every constant kept.

        `features` are `features(x)`, where they are known already.
        """
        levels = range(len(self.config.levels))
        variance = [torch.stack([layer.quantizer.variance for layer in self.layers if layer.level == r]).sum() for r in levels]
        state, steps = walk(self.layers, Draw(features or self.features(x), self.search, noise, [v.sqrt() for v in variance]))
        layers = [step.quantized for step in steps]
        surplus, entropy = torch.stack(self._by_level(steps, "surplus")).sum(0), torch.stack([q.entropy for q in layers]).sum(0)
        latent = self.capacity(layers) + surplus - entropy
        return Bound(_distortion(x, self._signal(state, x.shape[2:])), latent)

    # ------------------------------------------------------------------------------------------------ parts

    @property
    def search(self) -> Search:
        """How nearest codes are found: the quantizers of others have ways of their own."""
        return Search(self.layers, 1 if self.config.quantizer.kind == "other" else self.config.search)

    @property
    def stride(self) -> int:
        """Of the coarsest level: signals are padded to a multiple of it."""
        return self.config.levels[0].stride

    def features(self, x: Float[Tensor, "B C *S"]) -> tuple[Tensor, ...]:
        """h^r of every level, coarse first; a signal of another size is padded by repeating its last samples."""
        if x.ndim != self.config.axes + 2 or x.shape[1] != self.config.channels:
            raise ValueError(
                f"x has shape {list(x.shape)}; this model expects [B, {self.config.channels}"
                + ", H, W]" * (self.config.axes == 2)
                + ", T]" * (self.config.axes == 1)
            )
        missing = [(-size) % self.stride for size in x.shape[2:]]
        if any(missing):
            pads = [p for m in reversed(missing) for p in (0, m)]
            x = nn.functional.pad(x, pads, mode="replicate")
        return self.encoder(x)

    def capacity(self, layers: Sequence[Quantized]) -> float:
        """Σ_l |S_l| log K_l in nats: what the codes of one signal could carry."""
        return sum(q.codes[0].numel() * math.log(layer.quantizer.codebook_size) for layer, q in zip(self.layers, layers))

    def _by_level(self, steps: Sequence[Step], term: str) -> list[Tensor]:
        """The quantizers' `term` of every level, from its first layer's Z̃ and all its layers' Z."""
        terms = []
        for r in range(len(self.config.levels)):
            mine = [i for i, layer in enumerate(self.layers) if layer.level == r]
            of_level = getattr(self.layers[mine[0]].quantizer, term)
            terms.append(of_level(steps[mine[0]].z_e, [steps[i].quantized for i in mine]))
        return terms

    def _ends(self, lengths: Sequence[int]) -> Tensor:
        """Where signals end, in coarsest positions."""
        return torch.tensor([-(-length // self.stride) for length in lengths])

    def _distortions(self, x: Tensor, views: Sequence[Tensor], x_hat: Tensor) -> list[Tensor]:
        """Squared errors [B] of the signal and of its views; a view's stands for as many elements as the signal has."""
        size, seen = x[0].numel(), self.config.spectral.views(x_hat)
        return [_distortion(x, x_hat), *[_distortion(there, here) * (size / there[0].numel()) for there, here in zip(views, seen)]]

    def _signal(self, state: State, size: Sequence[int] | None) -> Tensor:
        x_hat = self.decoder(self.settle(state))
        crop = [slice(None), slice(None), *(slice(0, side) for side in size or x_hat.shape[2:])]
        return x_hat[tuple(crop)]

    # ------------------------------------------------------------------------------------------------ on disk

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `config.json` and `model.safetensors` into a folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"model": TypeAdapter(HQVAEConfig).dump_python(self.config, mode="json")}, indent=2)
        (folder / "config.json").write_text(text + "\n")
        save_model(self, str(folder / "model.safetensors"))

    @classmethod
    def from_pretrained(cls, source: str | Path) -> "HQVAE":
        """A model in evaluation mode, from a folder (also a run's) or a Hugging Face repository.

        Raises FileNotFoundError where neither is found, ValueError where config and weights do not fit.
        """
        folder = _folder_of(str(source))
        saved = json.loads((folder / "config.json").read_text())
        model, weights = cls(TypeAdapter(HQVAEConfig).validate_python(saved.get("model"))), str(folder / "model.safetensors")
        with safe_open(weights, "pt") as file:
            names = list(file.keys())
        if model.config.quantizer.kind == "stochastic" and any(name.endswith("quantizer.counts") for name in names):
            model.harden()  # a run's config is that of its beginning
        try:
            load_model(model, weights)
        except RuntimeError as error:
            raise ValueError(f"the weights in {folder} do not fit its config.json: {summary_of(error)}") from error
        return model.eval()


def _distortion(x: Tensor, x_hat: Tensor) -> Tensor:
    return (x.float() - x_hat.float()).square().flatten(1).sum(1)


def _folder_of(source: str) -> Path:
    if Path(source).is_dir():
        missing = [name for name in ("config.json", "model.safetensors") if not (Path(source) / name).is_file()]
        if missing:
            raise FileNotFoundError(f"{source} has no {missing[0]}: expected a folder that `save_pretrained` or a run wrote")
        return Path(source)
    if source.count("/") == 1 and not source.startswith((".", "/", "~")):
        from huggingface_hub import snapshot_download

        try:
            return Path(snapshot_download(source, allow_patterns=["config.json", "model.safetensors"]))
        except Exception as error:  # of the hub's many classes: offline, no such repository, no right to read it
            raise FileNotFoundError(f"{source}: no such folder here, and not to be had from the hub: {summary_of(error)}") from error
    raise FileNotFoundError(f"{source}: no such folder, and not the name of a repository (owner/name) either")
