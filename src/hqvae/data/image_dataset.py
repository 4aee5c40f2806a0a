"""One split of images: each decoded, oriented and cut to a square; kept where they fit."""

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from hqvae.errors import InputError

from .broken import BrokenItem
from .dataset import Dataset
from .images import IMAGE, ImageConfig, in_mode
from .pixels import central_crop, resize_shorter_side, square, to_array
from .scan import Progress, scan
from .sources import FileIndex
from .stored import to_signal


class TooSmall(InputError):
    """An image whose shorter side is below `data.size`: to enlarge it would invent detail."""

    def __init__(self, key: str, width: int, height: int, size: int):
        super().__init__(
            f"{key} with {width}×{height} pixels is smaller than data.size={size}; "
            f"take it out, or {_lower_size(min(width, height))}"
        )
        self.side = min(width, height)
        self.described = f"{key} with {width}×{height}"


def _lower_size(side: int) -> str:
    return f"lower data.size to {max(2, side)} (for evaluate: size={max(2, side)})"


class ImageDataset(Dataset):
    """One split of images: raw batches are uint8 [B, C, size, size].

    Opening it decodes the whole split where that fits into `cache_mb`, and reads no file else.
    """

    modality = IMAGE

    def __init__(
        self, index: FileIndex, config: ImageConfig, channels: int, progress: Progress | None = None
    ):
        if config.size is None:
            raise ValueError("config.size is not resolved; open the data with open_data")
        super().__init__(index, config)
        self.size = config.size
        self.channels = channels
        self.shape = (channels, config.size, config.size)
        self.unit = IMAGE.unit(config)
        self._random_crop = config.crop == "random"
        longer_side = 1.5 if self._random_crop else 1  # a guess: such crops are cut when needed
        bytes_needed = len(index) * channels * config.size**2 * longer_side
        self.in_memory = bytes_needed <= config.cache_mb * 2**20
        self._shrunk: list[np.ndarray | None] | None = None  # kept images, of any longer side
        self._stacked: np.ndarray | None = None  # the same, where all are squares
        self._gaps = np.zeros(0, int)  # broken ones in the stack
        if self.in_memory:
            self._decode_all(progress)

    def __len__(self) -> int:
        return len(self.index)

    def describe(self) -> str:
        return f"{len(self) - len(self._unreadable)} images of {self.size}²"

    def item_of(self, i: int) -> int:
        return i

    @property
    def kept(self) -> list[np.ndarray] | None:
        """All images that can be read, as a model sees them; None where they are not kept."""
        if self._shrunk is None:
            return None
        return [image for image in self._shrunk if image is not None]

    # ------------------------------------------------------------------------------- one at a time

    def read_raw(self, i: int) -> UInt8[np.ndarray, "C H W"]:
        return self._attempt(i, lambda: to_array(self._decode(i)))

    def whole(self, i: int) -> Float[Tensor, "C H W"]:
        open_item = self.index.open_whole or self.index.open
        raw = self._attempt(i, lambda: to_array(self._in_mode(open_item(i))))
        return self.signal(torch.from_numpy(raw)[None])[0]

    def load_raw(
        self, i: int, augment_noise: Float[np.ndarray, "2"] | None = None
    ) -> UInt8[np.ndarray, "C H W"]:
        if augment_noise is None:
            return self._crop(self._shrunk_image(i), None)
        flip_noise, crop_noise = augment_noise
        cropped = self._crop(self._shrunk_image(i), crop_noise if self._random_crop else None)
        return cropped[..., ::-1] if self.config.flip and flip_noise < 0.5 else cropped

    def coded_raw(self, i: int, whole: bool) -> tuple[UInt8[np.ndarray, "C H W"], tuple[int, int]]:
        def read() -> tuple[np.ndarray, tuple[int, int]]:
            image = self._decode(i)
            raw = to_array(image) if whole else self._crop(self._shrink(i, image), None)
            return raw, (image.height, image.width)

        try:
            return self._attempt(i, read)
        except TooSmall as error:
            raise BrokenItem(self.keys[i], f"smaller than data.size={self.size}") from error

    def codable(self, raw: UInt8[np.ndarray, "C H W"]) -> UInt8[Tensor, "C H W"]:
        return torch.from_numpy(np.ascontiguousarray(raw))

    def _shrunk_image(self, i: int) -> np.ndarray:
        kept = None if self._shrunk is None else self._shrunk[i]
        return kept if kept is not None else self._attempt(i, lambda: self._read_shrunk(i))

    def _read_shrunk(self, i: int) -> np.ndarray:
        return self._shrink(i, self._decode(i))

    def _shrink(self, i: int, image: Image.Image) -> np.ndarray:
        """[C, H, W] whose shorter side is `size`; square where crops are central."""
        if min(image.size) < self.size:
            raise TooSmall(self.keys[i], image.width, image.height, self.size)
        if self._random_crop:
            return to_array(resize_shorter_side(image, self.size))
        return square(image, self.size)

    def _decode(self, i: int) -> Image.Image:
        return self._in_mode(self.index.open(i))

    def _in_mode(self, image: Image.Image) -> Image.Image:
        return in_mode(image, self.channels, self.config)

    def _crop(self, image: np.ndarray, crop_noise: float | None) -> np.ndarray:
        """A square of the longer side: its middle, or where the noise says."""
        if crop_noise is None:
            return central_crop(image, self.size)
        top, left = [int(crop_noise * (side - self.size + 1)) for side in image.shape[1:]]
        return image[:, top : top + self.size, left : left + self.size]

    # -------------------------------------------------------------------------------------- batches

    def training_batch(
        self, indices: np.ndarray, augment_noise: Float[np.ndarray, "B 2"]
    ) -> UInt8[Tensor, "B C H W"]:
        if self._stacked is None or (len(self._gaps) and np.isin(indices, self._gaps).any()):
            return super().training_batch(indices, augment_noise)
        batch = torch.from_numpy(self._stacked[indices])
        if self.config.flip:
            mirrored = torch.from_numpy(augment_noise[:, 0] < 0.5)
            batch = torch.where(mirrored[:, None, None, None], batch.flip(-1), batch)
        return batch

    def signal(
        self, raw: UInt8[Tensor, "B C H W"], device: torch.device | str = "cpu"
    ) -> Float[Tensor, "B C H W"]:
        return to_signal(raw, device)

    def picture(self, signal: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        return signal

    # --------------------------------------------------------------------------------------- memory

    def _decode_all(self, progress: Progress | None) -> None:
        """Keep every image that can be decoded. Raises InputError where some are too small."""

        def decode(i: int) -> np.ndarray | TooSmall | None:
            try:
                return self._attempt(i, lambda: self._read_shrunk(i))
            except BrokenItem:
                return None
            except TooSmall as error:
                return error

        found = scan(decode, len(self), progress)
        small = [one for one in found if isinstance(one, TooSmall)]
        if small:
            smallest = min(small, key=lambda one: one.side)
            raise InputError(
                f"{len(small)} of {len(found)} images are smaller than data.size={self.size}, "
                f"the smallest {smallest.described}; take them out, "
                f"or {_lower_size(smallest.side)}"
            )
        self._warn_of_scan()
        self._keep([None if isinstance(one, TooSmall) else one for one in found])

    def _keep(self, images: list[np.ndarray | None]) -> None:
        self._shrunk = images
        if self._random_crop:
            return
        self._gaps = np.array(sorted(self._unreadable), dtype=int)
        self._stacked = np.zeros((len(images), *self.shape), np.uint8)
        for i, image in enumerate(images):
            if image is not None:
                self._stacked[i] = image
                images[i] = self._stacked[i]  # a view: each image is kept once
