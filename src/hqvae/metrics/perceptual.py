"""LPIPS and rFID, where their networks' weights are in torch hub's cache; nothing is downloaded.

LPIPS: distance of VGG-16 features, unit length per position, weighed per channel
    (Zhang et al., CVPR 2018)
rFID: Fréchet distance of Inception-v3 features of originals and reconstructions
    (Heusel et al., NeurIPS 2017)
"""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hqvae.errors import InputError, summary_of
from hqvae.ranks import all_sum

from .base import Mean, Metric, measured
from .inception import InceptionV3
from .vgg import VGG_CHANNELS, Vgg16

VGG_WEIGHTS = "vgg16-397923af.pth"  # torchvision's
# pytorch-fid's port of the original network
INCEPTION_WEIGHTS = "pt_inception-2015-12-05-6726825d.pth"
_LPIPS_WEIGHTS = ("functional", "image", "lpips_models", "vgg.pth")  # in torchmetrics
_SMALLEST_SIDE = 16  # pixels: VGG-16 halves images four times


class Lpips(nn.Module):
    """LPIPS of images in [−1, 1], `[B, 3, H, W]` twice → `[B]`; H and W at least 16."""

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.net = Vgg16()
        self.channel_weights = nn.ParameterList(
            torch.ones(1, group[-1], 1, 1) for group in VGG_CHANNELS
        )
        shift = torch.tensor([-0.030, -0.088, -0.188])
        scale = torch.tensor([0.458, 0.448, 0.450])
        self.register_buffer("shift", shift.view(1, 3, 1, 1))
        self.register_buffer("scale", scale.view(1, 3, 1, 1))

    def forward(
        self, x: Float[Tensor, "B 3 H W"], x_hat: Float[Tensor, "B 3 H W"]
    ) -> Float[Tensor, "B"]:
        features, features_hat = (self.net((y - self.shift) / self.scale) for y in (x, x_hat))
        distances = [
            (weights * (_unit(h) - _unit(h_hat)).square()).sum(1).mean((1, 2))
            for weights, h, h_hat in zip(self.channel_weights, features, features_hat)
        ]
        return torch.stack(distances).sum(0)


def _unit(features: Tensor) -> Tensor:
    """Features of unit length at every position."""
    return features / features.square().sum(1, keepdim=True).add(1e-8).sqrt()


class Perceptual(Metric):
    """LPIPS and rFID of images; `from_cache` makes one of the networks whose weights are there.

    Args:
        lpips: None leaves LPIPS out
        inception: gives `num_features` features per image for rFID; None leaves rFID out
    """

    def __init__(self, lpips: Lpips | None, inception: nn.Module | None):
        self.lpips = lpips.eval().requires_grad_(False) if lpips else None
        self.frechet = _frechet(inception) if inception else None
        self.distance = Mean()

    @staticmethod
    def from_cache(
        device: torch.device | str = "cpu", folder: str | Path | None = None
    ) -> "Perceptual":
        """With the networks whose weights are in `folder` (torch hub's cache if None).

        Raises InputError for a file of weights that cannot be read.
        """
        cache = Path(torch.hub.get_dir()) / "checkpoints" if folder is None else Path(folder)
        lpips = None
        inception = None
        if (cache / VGG_WEIGHTS).is_file():
            lpips = _load_lpips(cache / VGG_WEIGHTS).to(device)
        if (cache / INCEPTION_WEIGHTS).is_file():
            inception = InceptionV3()
            weights = _load(cache / INCEPTION_WEIGHTS)
            inception.load_state_dict(
                {name: values for name, values in weights.items() if not name.startswith("fc.")}
            )
            inception.to(device)
        return Perceptual(lpips, inception)

    @torch.no_grad()
    def add(self, x: Float[Tensor, "B ..."], x_hat: Float[Tensor, "B ..."]) -> None:
        """Images in [−1, 1]; grey ones count as colour with three equal channels."""
        if x.ndim != 4:
            return
        x, x_hat = (images.float().expand(-1, 3, -1, -1) for images in (x, x_hat))
        if self.lpips is not None and min(x.shape[2:]) >= _SMALLEST_SIDE:
            self.distance.add(self.lpips(x, x_hat))
        if self.frechet is not None:
            self.frechet.to(x.device)
            self.frechet.update(x, real=True)
            self.frechet.update(x_hat, real=False)

    def values(self) -> dict[str, float]:
        """`lpips`, and `rfid` of at least two images: a covariance needs two."""
        figures = {"lpips": self.distance.value()}
        if self.frechet is not None:
            count = all_sum(self.frechet.real_features_num_samples.to("cpu"))
            if int(count) > 1:
                figures["rfid"] = float(self.frechet.compute())  # of all processes
        return measured(figures)


def _frechet(inception: nn.Module) -> Any:
    from torchmetrics.image.fid import FrechetInceptionDistance

    return FrechetInceptionDistance(inception.eval().requires_grad_(False))


def _load_lpips(vgg_weights: Path) -> Lpips:
    lpips = Lpips()
    lpips.net.load_state_dict(
        {
            name: values
            for name, values in _load(vgg_weights).items()
            if name.startswith("features.")
        }
    )
    import torchmetrics

    learned = _load(Path(torchmetrics.__file__).parent.joinpath(*_LPIPS_WEIGHTS))
    for weights, values in zip(lpips.channel_weights, learned.values(), strict=True):
        weights.data.copy_(values)
    return lpips


def _load(path: Path) -> dict[str, Tensor]:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises several classes for truncated files
        raise InputError(
            f"weights {str(path)!r} cannot be read: {summary_of(error)}; "
            "delete the file, or put a whole one there"
        ) from error
