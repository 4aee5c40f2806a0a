"""Inception-v3 as FID uses it (Szegedy et al., 2016), in pytorch-fid's names and layers.

Figures compare only over the same weights, so every layer and name is that of the original.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

_SIDE = 299  # pixels that the network sees


class _Conv(nn.Module):
    def __init__(
        self,
        width: int,
        channels: int,
        kernel: int | tuple[int, int],
        stride: int = 1,
        padding: int | tuple[int, int] = 0,
    ):
        super().__init__()
        self.conv = nn.Conv2d(width, channels, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(channels, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.bn(self.conv(x)))


class _Mixed(nn.Module):
    """Branches side by side, each a chain of named convolutions.

    The last two convolutions of a chain read the same input when their names end in a and b.

    Args:
        branches: [[(name, *arguments of the convolution), …], …]; an empty chain pools the input
        pool: of the chain called `branch_pool`, and of an empty chain
    """

    def __init__(self, branches: Sequence[Sequence[tuple]], pool: nn.Module):
        super().__init__()
        self.chains = [[name for name, *_ in chain] for chain in branches]
        self.pool = pool
        for chain in branches:
            for name, *arguments in chain:
                self.add_module(name, _Conv(*arguments))

    def forward(self, x: Tensor) -> Tensor:
        outputs = []
        for chain in self.chains:
            y = self.pool(x) if not chain or chain == ["branch_pool"] else x
            parallel = [name for name in chain if name[-1] in "ab"]
            for name in chain[: len(chain) - len(parallel)]:
                y = self.get_submodule(name)(y)
            outputs += [self.get_submodule(name)(y) for name in parallel] or [y]
        return torch.cat(outputs, 1)


# (kernel, padding) of a convolution along a row and along a column
_ROW = ((1, 7), (0, 3))
_COLUMN = ((7, 1), (3, 0))


def _average_pool() -> nn.Module:
    # As in the original network, not as in torchvision's.
    return nn.AvgPool2d(3, 1, 1, count_include_pad=False)


def _mixed_a(width: int, pooled: int) -> _Mixed:
    double = [
        ("branch3x3dbl_1", width, 64, 1),
        ("branch3x3dbl_2", 64, 96, 3, 1, 1),
        ("branch3x3dbl_3", 96, 96, 3, 1, 1),
    ]
    five = [("branch5x5_1", width, 48, 1), ("branch5x5_2", 48, 64, 5, 1, 2)]
    one = [("branch1x1", width, 64, 1)]
    return _Mixed([one, five, double, [("branch_pool", width, pooled, 1)]], _average_pool())


def _mixed_b(width: int) -> _Mixed:
    double = [
        ("branch3x3dbl_1", width, 64, 1),
        ("branch3x3dbl_2", 64, 96, 3, 1, 1),
        ("branch3x3dbl_3", 96, 96, 3, 2),
    ]
    return _Mixed([[("branch3x3", width, 384, 3, 2)], double, []], nn.MaxPool2d(3, 2))


def _mixed_c(width: int, inner: int) -> _Mixed:
    row, row_padding = _ROW
    column, column_padding = _COLUMN
    seven = [
        ("branch7x7_1", width, inner, 1),
        ("branch7x7_2", inner, inner, row, 1, row_padding),
        ("branch7x7_3", inner, 192, column, 1, column_padding),
    ]
    double = [
        ("branch7x7dbl_1", width, inner, 1),
        ("branch7x7dbl_2", inner, inner, column, 1, column_padding),
        ("branch7x7dbl_3", inner, inner, row, 1, row_padding),
        ("branch7x7dbl_4", inner, inner, column, 1, column_padding),
        ("branch7x7dbl_5", inner, 192, row, 1, row_padding),
    ]
    one = [("branch1x1", width, 192, 1)]
    return _Mixed([one, seven, double, [("branch_pool", width, 192, 1)]], _average_pool())


def _mixed_d(width: int) -> _Mixed:
    row, row_padding = _ROW
    column, column_padding = _COLUMN
    seven = [
        ("branch7x7x3_1", width, 192, 1),
        ("branch7x7x3_2", 192, 192, row, 1, row_padding),
        ("branch7x7x3_3", 192, 192, column, 1, column_padding),
        ("branch7x7x3_4", 192, 192, 3, 2),
    ]
    three = [("branch3x3_1", width, 192, 1), ("branch3x3_2", 192, 320, 3, 2)]
    return _Mixed([three, seven, []], nn.MaxPool2d(3, 2))


def _mixed_e(width: int, pool: nn.Module) -> _Mixed:
    across = ((1, 3), 1, (0, 1))
    down = ((3, 1), 1, (1, 0))
    three = [
        ("branch3x3_1", width, 384, 1),
        ("branch3x3_2a", 384, 384, *across),
        ("branch3x3_2b", 384, 384, *down),
    ]
    double = [
        ("branch3x3dbl_1", width, 448, 1),
        ("branch3x3dbl_2", 448, 384, 3, 1, 1),
        ("branch3x3dbl_3a", 384, 384, *across),
        ("branch3x3dbl_3b", 384, 384, *down),
    ]
    one = [("branch1x1", width, 320, 1)]
    return _Mixed([one, three, double, [("branch_pool", width, 192, 1)]], pool)


class InceptionV3(nn.Module):
    """Inception-v3 up to its last pooling: images in [−1, 1] `[B, 3, H, W]` → `[B, 2048]`.

    Images of any size are resized to the 299×299 that the network was trained on.
    """

    num_features = 2048  # torchmetrics asks for it

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = _Conv(3, 32, 3, 2)
        self.Conv2d_2a_3x3 = _Conv(32, 32, 3)
        self.Conv2d_2b_3x3 = _Conv(32, 64, 3, 1, 1)
        self.pool1 = nn.MaxPool2d(3, 2)
        self.Conv2d_3b_1x1 = _Conv(64, 80, 1)
        self.Conv2d_4a_3x3 = _Conv(80, 192, 3)
        self.pool2 = nn.MaxPool2d(3, 2)
        self.Mixed_5b = _mixed_a(192, 32)
        self.Mixed_5c = _mixed_a(256, 64)
        self.Mixed_5d = _mixed_a(288, 64)
        self.Mixed_6a = _mixed_b(288)
        self.Mixed_6b = _mixed_c(768, 128)
        self.Mixed_6c = _mixed_c(768, 160)
        self.Mixed_6d = _mixed_c(768, 160)
        self.Mixed_6e = _mixed_c(768, 192)
        self.Mixed_7a = _mixed_d(768)
        self.Mixed_7b = _mixed_e(1280, _average_pool())
        self.Mixed_7c = _mixed_e(2048, nn.MaxPool2d(3, 1, 1))

    def forward(self, x: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 2048"]:
        size = (_SIDE, _SIDE)
        x = nn.functional.interpolate(x, size=size, mode="bilinear", align_corners=False)
        for layer in self.children():
            x = layer(x)
        return x.mean((2, 3))
