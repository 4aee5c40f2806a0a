"""Tokenizer: pictures, sounds and signals → tokens and back; the same tokens whatever the company.

Libraries round products of another shape in another way, and where two codes are nearly as far a
token flips. So a tokenizer computes in float32 and in few fixed shapes: batches are filled up, and
signals go through windows (`hqvae.tiling.windows`) whose sizes depend on the signal's alone.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, SupportsIndex, TypeVar

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from hqvae.full_precision import FULL_PRECISION
from hqvae.integers import integers
from hqvae.model import HQVAE
from hqvae.model.signals import as_signal, check_list, limit_of, usual_size
from hqvae.nets import Decoder, Encoder, mask_padding
from hqvae.single_threads import map_single_threaded
from hqvae.tiling import Window, Windows, put, receptive_margin, take
from hqvae.tiling.batches import Batch, batch_size, batches, rows_of
from hqvae.tokens import Layout, Tokens

R = TypeVar("R")
T = TypeVar("T")
# Signal points of a batch: enough to keep a device busy, few enough that one alone is soon done.
_POINTS = {"cpu": 2**16, "cuda": 2**19}
_VECTORS = {"cpu": 2**10, "cuda": 2**14}  # of signals without axes, of one point each
_LARGEST = {0: 1, 1: 2**18, 2: 512}  # samples of a window along an axis, by the number of axes


class Tokenizer:
    """A trained model as files use it.

    The tokens of an item are the same alone and in any list, beside any others, with any number of
    threads. They are those of one kind of device: a GPU rounds in its own way.

    Networks of your own may see further than convolutions do, so with them no signal is masked or
    cut: each is computed in its own size, which takes memory for all of it.

    Args:
        model: with float32 weights on a CPU or a GPU of CUDA; put into evaluation mode
        rate_weight: as `HQVAE.encode` takes it

    Raises ValueError for weights of another type or elsewhere.

    >>> from PIL import Image
    >>> from hqvae.data import ImageConfig
    >>> model = HQVAE(data=ImageConfig(size=16))
    >>> tokenizer = Tokenizer(model)
    >>> red, blue = tokenizer.encode([Image.new("RGB", (40, 20), name) for name in ("red", "blue")])
    >>> red.shapes
    ((4, 4),)
    >>> tokenizer.decode([red, blue])[0].size
    (16, 16)
    """

    def __init__(self, model: HQVAE, rate_weight: float | None = None):
        weight = next(model.parameters())
        if weight.dtype != torch.float32:
            raise ValueError(f"the model's weights are {weight.dtype}; expected torch.float32")
        if weight.device.type not in _POINTS:
            raise ValueError(f"the model is on {weight.device}; expected cpu or cuda")
        self.model = model.eval()
        self.rate_weight = rate_weight
        self._codes = partial(self.model.encode, rate_weight=rate_weight)
        self.device = weight.device
        self.points = (_POINTS if model.config.axes else _VECTORS)[self.device.type]
        """Of the signals of a batch, all together."""
        self.layout: Layout = model.config.layout
        self.usual = usual_size(model.config, model.data)
        self._encoding = self._windows_for(decode=False)
        self._decoding = self._windows_for(encode=False)

    @classmethod
    def from_pretrained(
        cls, source: str | Path, device: str = "cpu", rate_weight: float | None = None
    ) -> "Tokenizer":
        """Of a run's or model's folder, or a Hugging Face repository; raises as `HQVAE`'s does."""
        return cls(HQVAE.from_pretrained(source).to(device), rate_weight)

    def on(self, device: str) -> "Tokenizer":
        """Another one, with a copy of the model on this device."""
        return Tokenizer(copy.deepcopy(self.model).to(device), self.rate_weight)

    # ----------------------------------------------------------------------------------- items

    def encode(self, items: Any, whole: bool = False) -> list[Tokens]:
        """The tokens of items: paths or bytes of files, pictures of Pillow, arrays, signals.

        Args:
            items: files and pictures are prepared as those of training were
                (`HQVAE.preprocess`). Tensors are signals [C, *S], as `HQVAE.encode` takes them
            whole: pictures at their own size; else resized and cropped to that of training. Sounds
                are always whole

        Raises as `HQVAE.preprocess` does, and ValueError for signals of other channels or axes, and
        for one item that stands in no list.
        """
        check_list(items, "items")
        return self.encode_signals([self._signal(item, whole) for item in items])

    def decode(self, tokens: Any, layers: SupportsIndex | None = None) -> list[Any]:
        """Pictures of Pillow, or samples of sounds, from the tokens of all layers or the first.

        Raises as `decode_signals` does, and ValueError where the model does not know what its
        signals are.
        """
        check_list(tokens, "tokens")
        return [
            self.model.postprocess(signal[None])[0]
            for signal in self.decode_signals(tokens, layers)
        ]

    def _signal(self, item: Any, whole: bool) -> Tensor:
        if isinstance(item, Tensor):
            return item
        return self.model.preprocess(item, whole)[0]

    # --------------------------------------------------------------------------------- signals

    @torch.no_grad()
    def encode_signals(self, signals: Sequence[Shaped[Tensor, "C ..."]]) -> list[Tokens]:
        """The tokens of signals [C, *S] of any sizes, as `HQVAE.encode` takes them.

        Raises ValueError for other channels or axes than the model's, and values out of range.
        """
        for signal in signals:
            self._check(signal)
        if len({signal.dtype for signal in signals}) > 1:  # a stack would make all of them floats
            weight = next(self.model.parameters()).cpu()
            limit = limit_of(self.model.config, self.model.data)
            signals = [as_signal(one[None], self.model.config, weight, limit)[0] for one in signals]
        sizes = [tuple(signal.shape[1:]) for signal in signals]
        shapes = [self.layout.shapes(self.layout.coarsest(size)) for size in sizes]
        found: list[dict[int, Tensor]] = [{} for _ in sizes]

        def encode(batch: Batch) -> tuple[Batch, list[Tensor]]:
            parts = [take(signals[i], window, self.layout.stride) for i, window in batch.pieces]
            with self._computing(batch):
                codes = self._codes(batch.filled(parts).to(self.device))
            return batch, [of_layer.cpu() for of_layer in codes]

        for batch, codes in self._compute(encode, batches(self._encoding, sizes, self.points)):
            for layer, (ratio, of_layer) in enumerate(zip(self.layout.ratios, codes)):
                for (item, window), row in zip(batch.pieces, of_layer):
                    so_far = found[item].get(layer)
                    found[item][layer] = put(so_far, row, window, ratio, shapes[item][layer])
        return [Tokens(tuple(codes.values()), size) for codes, size in zip(found, sizes)]

    @torch.no_grad()
    def encode_batch(self, x: Shaped[Tensor, "N C ..."]) -> tuple[Int[Tensor, "N ..."], ...]:
        """The codes [N, *S_l] of every layer, of signals of one size: those of `encode_signals`.

        For many small signals, vectors among them, this is the fast way. Of no signals the codes
        have no rows. Raises as `encode_signals` does where there is one.
        """
        size = tuple(x.shape[2:])
        if not len(x):
            shapes = self.layout.shapes(self.layout.coarsest(size))
            return tuple(torch.zeros(0, *shape, dtype=torch.long) for shape in shapes)
        self._check(x[0])
        windows = self._encoding.of(size)
        if len(windows) > 1 or any(
            side * self.layout.stride != length for side, length in zip(windows[0].sides, size)
        ):
            tokens = self.encode_signals(list(x))
            return tuple(map(torch.stack, zip(*(one.codes for one in tokens))))
        return self.in_batches(x, self._codes)

    def in_batches(
        self, x: Shaped[Tensor, "N C ..."], work: Callable[[Tensor], Sequence[Tensor]]
    ) -> tuple[Tensor, ...]:
        """What `work` gives of signals of one size: in batches of one shape, in full precision."""
        count = batch_size(x.shape[2:], self.points)
        rows = rows_of(count)

        def part(start: int) -> tuple[Tensor, ...]:
            signals = x[start : start + count]
            filling = signals[-1:].expand(rows - len(signals), *signals.shape[1:])
            with torch.no_grad(), self._in_full_precision():
                found = work(torch.cat([signals, filling]).to(self.device))
            return tuple(values[: len(signals)].cpu() for values in found)

        return tuple(map(torch.cat, zip(*self._compute(part, range(0, len(x), count)))))

    @torch.no_grad()
    def decode_signals(
        self, tokens: Sequence[Tokens], layers: SupportsIndex | None = None
    ) -> list[Float[Tensor, "C ..."]]:
        """Signals [C, *S] from the tokens of all layers, or of the first `layers` ones.

        Raises ValueError for a wrong number of layers, a shape that does not fit the size, or a
        code outside its codebook.
        """
        count = len(self.layout.layers if layers is None else self.layout.first(layers).layers)
        tokens = [replace(one, codes=tuple(map(integers, one.codes))) for one in tokens]
        for one in tokens:
            self._check_tokens(one, count)
        sizes = [one.size for one in tokens]
        channels = self.model.config.channels
        found: dict[int, Tensor] = {}

        def part(item: int, layer: int, window: Window) -> Tensor:
            return take(tokens[item].codes[layer][None], window, self.layout.ratios[layer])[0]

        def decode(batch: Batch) -> tuple[Batch, Tensor]:
            codes = [
                batch.filled([part(item, layer, window) for item, window in batch.pieces])
                for layer in range(count)
            ]
            with self._computing(batch):
                x_hat = self.model.decode([of_layer.to(self.device) for of_layer in codes], count)
            return batch, x_hat.cpu()

        for batch, x_hat in self._compute(decode, batches(self._decoding, sizes, self.points)):
            for (item, window), row in zip(batch.pieces, x_hat):
                shape = (channels, *sizes[item])
                found[item] = put(found.get(item), row, window, self.layout.stride, shape)
        return [found[item] for item in range(len(tokens))]

    # ----------------------------------------------------------------------------------- parts

    def compute(self) -> dict[str, Any]:
        """What tokens depend on beside the model, as plain values."""
        on_gpu = self.device.type == "cuda"
        stride = self.layout.stride
        return {
            "dtype": "float32",
            "device": torch.cuda.get_device_name(self.device) if on_gpu else "cpu",
            "instructions": None if on_gpu else torch.backends.cpu.get_cpu_capability(),
            "usual_shape": self._usual_shape(),
            "points_of_a_batch": self.points,
            "largest_window": self._encoding.largest * stride,
            "margin": self._encoding.margin * stride,
        }

    def _usual_shape(self) -> list[int] | None:
        """[B, C, *S] of what is computed for signals of the usual size."""
        if self.usual is None:
            return None
        sides = [side * self.layout.stride for side in self._encoding.of(self.usual)[0].sides]
        rows = rows_of(batch_size(sides, self.points))
        return [rows, self.model.config.channels, *sides]

    def _windows_for(self, **way: bool) -> Windows:
        stride = self.layout.stride
        ours = isinstance(self.model.encoder, Encoder) and isinstance(self.model.decoder, Decoder)
        margin = receptive_margin(self.model, **way) // stride
        # At most half of a window is margin.
        largest = max(_LARGEST[self.layout.axes] // stride, 4 * margin, 1)
        return Windows(stride, margin, largest, self.usual, exact=not ours)

    def _compute(self, work: Callable[[T], R], of: Iterable[T]) -> Iterator[R]:
        """work(batch) of each, in order: on a CPU as many at a time as torch has threads."""
        return map(work, of) if self.device.type == "cuda" else map_single_threaded(work, of)

    @contextmanager
    def _in_full_precision(self) -> Iterator[None]:
        """Inside, everything is computed in float32, on this device."""
        with ExitStack() as stack:
            stack.enter_context(torch.autocast(self.device.type, enabled=False))
            if self.device.type == "cuda":
                stack.enter_context(torch.cuda.device(self.device))  # kernels of ours start there
                stack.enter_context(FULL_PRECISION)
            yield

    @contextmanager
    def _computing(self, batch: Batch) -> Iterator[None]:
        """Inside, the networks see of each window what lies before its ends, in float32."""
        with ExitStack() as stack:
            stack.enter_context(self._in_full_precision())
            ends = batch.ends
            if (ends != torch.tensor(batch.sides)).any():
                masks = mask_padding(self.model, ends.to(self.device), batch.sides)
                stack.enter_context(masks)
            yield

    def _check(self, signal: Tensor) -> None:
        """Raises ValueError for another number of axes or channels, and for no point at all."""
        channels = self.model.config.channels
        if signal.ndim != self.layout.axes + 1 or 0 in signal.shape or len(signal) != channels:
            space = {0: "", 1: ", T", 2: ", H, W"}[self.layout.axes]
            raise ValueError(
                f"a signal has shape {list(signal.shape)}; expected [{channels}{space}]"
            )

    def _check_tokens(self, tokens: Tokens, count: int) -> None:
        expected = self.layout.shapes(self.layout.coarsest(tokens.size))[:count]
        if tokens.shapes[:count] != expected:
            raise ValueError(
                f"codes of shapes {list(map(list, tokens.shapes))} for a signal of "
                f"{list(tokens.size)}; expected {list(map(list, expected))}"
            )
