"""LPIPS and rFID, where their networks' weights are at hand in torch hub's cache; nothing is ever downloaded.

LPIPS: distance of VGG-16 features, unit length per position, weighed per channel      (Zhang et al., CVPR 2018)
rFID: Fréchet distance of Inception-v3 features of originals and reconstructions       (Heusel et al., NeurIPS 2017)

The networks are the field's own, layer for layer and name for name, because figures compare only over the same weights.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
import torchmetrics
from jaxtyping import Float
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from hqvae.errors import InputError, summary_of

VGG_WEIGHTS = "vgg16-397923af.pth"  # torchvision's
INCEPTION_WEIGHTS = "pt_inception-2015-12-05-6726825d.pth"  # pytorch-fid's port of the original network
_CHANNELS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))  # of VGG-16, between poolings
_SIDE = 299  # pixels that Inception-v3 sees


class Vgg16(nn.Module):
    """VGG-16's convolutions, with torchvision's names; gives the features before every pooling, [B, W_i, H_i, W_i] × 5."""

    def __init__(self) -> None:
        super().__init__()
        steps: list[nn.Module] = []
        self.ends, width = [], 3
        for group in _CHANNELS:
            steps += [nn.MaxPool2d(2)] if steps else []
            for channels in group:
                steps += [nn.Conv2d(width, channels, 3, padding=1), nn.ReLU()]
                width = channels
            self.ends.append(len(steps))
        self.features = nn.Sequential(*steps)

    def forward(self, x: Float[Tensor, "B 3 H W"]) -> list[Tensor]:
        found = []
        for number, step in enumerate(self.features, 1):
            x = step(x)
            found += [x] if number in self.ends else []
        return found


class Lpips(nn.Module):
    """LPIPS of images in [−1, 1], `[B, 3, H, W] × 2 → [B]`; H and W at least 16."""

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.net = Vgg16()
        self.weigh = nn.ParameterList(torch.ones(1, group[-1], 1, 1) for group in _CHANNELS)
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1))

    def forward(self, x: Float[Tensor, "B 3 H W"], x_hat: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B"]:
        pairs = zip(self.net((x - self.shift) / self.scale), self.net((x_hat - self.shift) / self.scale))
        apart = [(w * (_unit(one) - _unit(other)).square()).sum(1).mean((1, 2)) for w, (one, other) in zip(self.weigh, pairs)]
        return torch.stack(apart).sum(0)


def _unit(features: Tensor) -> Tensor:
    return features / features.square().sum(1, keepdim=True).add(1e-8).sqrt()


class _Conv(nn.Module):
    def __init__(self, width: int, channels: int, kernel: int | tuple[int, int], stride: int = 1, padding: int | tuple[int, int] = 0):
        super().__init__()
        self.conv = nn.Conv2d(width, channels, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(channels, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.bn(self.conv(x)))


_ROW, _COLUMN = ((1, 7), (0, 3)), ((7, 1), (3, 0))


class _Mixed(nn.Module):
    """Branches side by side: each a chain of named convolutions, the last name of a chain may be two that read the same input.

    Args:
        branches: [[(name, *arguments of the convolution), …], …]; an empty chain is a pooling of the input itself
        pool: of the chain called `branch_pool`, and of an empty chain
    """

    def __init__(self, branches: Sequence[Sequence[tuple]], pool: nn.Module):
        super().__init__()
        self.chains = [[name for name, *_ in chain] for chain in branches]
        self.pool = pool
        for chain in branches:
            for name, *arguments in chain:
                setattr(self, name, _Conv(*arguments))

    def forward(self, x: Tensor) -> Tensor:
        found = []
        for chain in self.chains:
            y = self.pool(x) if not chain or chain == ["branch_pool"] else x
            split = [name for name in chain if name[-1] in "ab"]
            for name in chain[: len(chain) - len(split)]:
                y = getattr(self, name)(y)
            found += [getattr(self, name)(y) for name in split] or [y]
        return torch.cat(found, 1)


def _mean() -> nn.Module:
    return nn.AvgPool2d(3, 1, 1, count_include_pad=False)  # as in the original network, not as in torchvision's


def _a(width: int, pooled: int) -> _Mixed:
    double = [("branch3x3dbl_1", width, 64, 1), ("branch3x3dbl_2", 64, 96, 3, 1, 1), ("branch3x3dbl_3", 96, 96, 3, 1, 1)]
    five = [("branch5x5_1", width, 48, 1), ("branch5x5_2", 48, 64, 5, 1, 2)]
    return _Mixed([[("branch1x1", width, 64, 1)], five, double, [("branch_pool", width, pooled, 1)]], _mean())


def _b(width: int) -> _Mixed:
    double = [("branch3x3dbl_1", width, 64, 1), ("branch3x3dbl_2", 64, 96, 3, 1, 1), ("branch3x3dbl_3", 96, 96, 3, 2)]
    return _Mixed([[("branch3x3", width, 384, 3, 2)], double, []], nn.MaxPool2d(3, 2))


def _c(width: int, inner: int) -> _Mixed:
    (row, beside), (column, above) = _ROW, _COLUMN
    seven = [("branch7x7_1", width, inner, 1), ("branch7x7_2", inner, inner, row, 1, beside),
             ("branch7x7_3", inner, 192, column, 1, above)]  # fmt: skip
    double = [("branch7x7dbl_1", width, inner, 1), ("branch7x7dbl_2", inner, inner, column, 1, above),
              ("branch7x7dbl_3", inner, inner, row, 1, beside), ("branch7x7dbl_4", inner, inner, column, 1, above),
              ("branch7x7dbl_5", inner, 192, row, 1, beside)]  # fmt: skip
    return _Mixed([[("branch1x1", width, 192, 1)], seven, double, [("branch_pool", width, 192, 1)]], _mean())


def _d(width: int) -> _Mixed:
    (row, beside), (column, above) = _ROW, _COLUMN
    seven = [("branch7x7x3_1", width, 192, 1), ("branch7x7x3_2", 192, 192, row, 1, beside),
             ("branch7x7x3_3", 192, 192, column, 1, above), ("branch7x7x3_4", 192, 192, 3, 2)]  # fmt: skip
    return _Mixed([[("branch3x3_1", width, 192, 1), ("branch3x3_2", 192, 320, 3, 2)], seven, []], nn.MaxPool2d(3, 2))


def _e(width: int, pool: nn.Module) -> _Mixed:
    across, down = ((1, 3), 1, (0, 1)), ((3, 1), 1, (1, 0))
    three = [("branch3x3_1", width, 384, 1), ("branch3x3_2a", 384, 384, *across), ("branch3x3_2b", 384, 384, *down)]
    double = [("branch3x3dbl_1", width, 448, 1), ("branch3x3dbl_2", 448, 384, 3, 1, 1),
              ("branch3x3dbl_3a", 384, 384, *across), ("branch3x3dbl_3b", 384, 384, *down)]  # fmt: skip
    return _Mixed([[("branch1x1", width, 320, 1)], three, double, [("branch_pool", width, 192, 1)]], pool)


class InceptionV3(nn.Module):
    """Inception-v3 up to its last pooling, images in [−1, 1] of any size `[B, 3, H, W] → [B, 2048]`."""

    num_features = 2048  # torchmetrics asks for it

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3, self.Conv2d_2a_3x3 = _Conv(3, 32, 3, 2), _Conv(32, 32, 3)
        self.Conv2d_2b_3x3, self.pool1 = _Conv(32, 64, 3, 1, 1), nn.MaxPool2d(3, 2)
        self.Conv2d_3b_1x1, self.Conv2d_4a_3x3, self.pool2 = _Conv(64, 80, 1), _Conv(80, 192, 3), nn.MaxPool2d(3, 2)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = _a(192, 32), _a(256, 64), _a(288, 64)
        self.Mixed_6a, self.Mixed_6b = _b(288), _c(768, 128)
        self.Mixed_6c, self.Mixed_6d, self.Mixed_6e = _c(768, 160), _c(768, 160), _c(768, 192)
        self.Mixed_7a, self.Mixed_7b, self.Mixed_7c = _d(768), _e(1280, _mean()), _e(2048, nn.MaxPool2d(3, 1, 1))

    def forward(self, x: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 2048"]:
        x = nn.functional.interpolate(x, size=(_SIDE, _SIDE), mode="bilinear", align_corners=False)
        for step in self.children():
            x = step(x)
        return x.mean((2, 3))


class Perceptual:
    """LPIPS and rFID, fed batch by batch; each None where its network is not at hand. `at_hand` loads what is there."""

    def __init__(self, lpips: Lpips | None, inception: InceptionV3 | None):
        self.lpips = lpips.eval().requires_grad_(False) if lpips else None
        self.frechet = FrechetInceptionDistance(inception.eval().requires_grad_(False)) if inception else None
        self.total, self.count = 0.0, 0

    @staticmethod
    def at_hand(device: torch.device | str = "cpu", folder: str | Path | None = None) -> "Perceptual":
        """With the weights that are in `folder`, torch hub's cache when not given."""
        place = Path(torch.hub.get_dir()) / "checkpoints" if folder is None else Path(folder)
        lpips, inception = None, None
        if (place / VGG_WEIGHTS).is_file():
            lpips = Lpips().to(device)
            lpips.net.load_state_dict({k: v for k, v in _load(place / VGG_WEIGHTS).items() if k.startswith("features.")})
            weighing = _load(Path(torchmetrics.__file__).parent / "functional" / "image" / "lpips_models" / "vgg.pth")
            for weights, learned in zip(lpips.weigh, weighing.values(), strict=True):
                weights.data.copy_(learned)
        if (place / INCEPTION_WEIGHTS).is_file():
            inception = InceptionV3().to(device)
            inception.load_state_dict({k: v for k, v in _load(place / INCEPTION_WEIGHTS).items() if not k.startswith("fc.")})
        return Perceptual(lpips, inception)

    @torch.no_grad()
    def add(self, x: Float[Tensor, "B C H W"], x_hat: Float[Tensor, "B C H W"]) -> None:
        """Originals and reconstructions in [−1, 1]; grey ones count as colour with three equal channels."""
        one, other = (signal.float().clamp(-1, 1).expand(-1, 3, -1, -1) for signal in (x, x_hat))
        if self.lpips is not None and min(x.shape[2:]) >= 16:
            self.total += float(self.lpips(one, other).double().sum())
            self.count += len(x)
        if self.frechet is not None:
            self.frechet.to(x.device)
            self.frechet.update(one, real=True)
            self.frechet.update(other, real=False)

    def values(self) -> tuple[float | None, float | None]:
        """(mean LPIPS, rFID), None for what was not measured."""
        enough = self.frechet is not None and int(self.frechet.real_features_num_samples) > 1  # a covariance needs two
        frechet = float(self.frechet.compute()) if self.frechet is not None and enough else None
        return (self.total / self.count if self.count else None), frechet


def _load(path: Path) -> dict[str, Tensor]:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises several classes for torn files
        raise InputError(f"weights {path} cannot be read: {summary_of(error)}; delete them or put them there whole") from error
