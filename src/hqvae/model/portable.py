"""What is the same for a model whatever it computes: its way to files and back.

Files of data become signals, signals become files of data, and a model becomes a folder.
"""

from abc import abstractmethod
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from hqvae.data import DataConfig

from . import pretrained, signals
from .config import HQVAEConfig


class Portable(nn.Module):
    """The part of `HQVAE` that reads and writes.

    Args:
        config: which member of the family
        data: what signals are made of; None where nobody has said
    """

    def __init__(self, config: HQVAEConfig, data: DataConfig | None):
        super().__init__()
        self.config = config
        self.data = data

    @property
    @abstractmethod
    def posterior(self) -> str:
        """How codes are chosen now, which the weights on disk record."""

    def preprocess(self, file: Any, whole: bool = False) -> Float[Tensor, "1 C *S"]:
        """The signal of a file, made as those of training were: what `encode` takes.

        Args:
            file: the path of a picture or sound, or its bytes
            whole: a picture at its own size; else resized and cropped to that of training. Sounds
                are always whole, at the rate of training

        Raises FileNotFoundError for no file, ValueError for one that cannot be used, and where the
        model does not know what its signals are (`model.data`).

        >>> from io import BytesIO
        >>> from hqvae import HQVAE
        >>> from PIL import Image
        >>> from hqvae.data import ImageConfig
        >>> model, file = HQVAE(data=ImageConfig(size=16)), BytesIO()
        >>> Image.new("RGB", (40, 20), "red").save(file, "png")
        >>> model.preprocess(file.getvalue()).shape
        torch.Size([1, 3, 16, 16])
        """
        return signals.preprocess(file, signals.require_data(self.data), self.config, whole)

    def postprocess(self, x_hat: Any) -> list[Any]:
        """What signals are of, one each: Pillow's pictures, or samples at `model.data.rate`.

        `x_hat` is a tensor [B, C, *S], as `decode` gives. The way back from `preprocess`, to be
        saved or played. Raises ValueError for another shape, and where the model does not know what
        its signals are.
        """
        return signals.postprocess(x_hat, signals.require_data(self.data), self.config)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `config.json` and `model.safetensors` into a folder.

        The config has the model's, and what its signals are (`model.data` without its source).
        """
        pretrained.save(self, Path(folder))
