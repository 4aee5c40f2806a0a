"""VGG-16's convolutions, whose features LPIPS compares (Simonyan and Zisserman, 2015)."""

from jaxtyping import Float
from torch import Tensor, nn

# Channels of the convolutions between poolings.
VGG_CHANNELS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class Vgg16(nn.Module):
    """The convolutions of VGG-16, with torchvision's names.

    `[B, 3, H, W]` → the features before every pooling, five of `[B, C_i, H_i, W_i]`.
    """

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        self.group_ends: list[int] = []
        width = 3
        for group in VGG_CHANNELS:
            layers += [nn.MaxPool2d(2)] if layers else []
            for channels in group:
                layers += [nn.Conv2d(width, channels, 3, padding=1), nn.ReLU()]
                width = channels
            self.group_ends.append(len(layers))
        self.features = nn.Sequential(*layers)

    def forward(self, x: Float[Tensor, "B 3 H W"]) -> list[Tensor]:
        features = []
        for number, layer in enumerate(self.features, 1):
            x = layer(x)
            features += [x] if number in self.group_ends else []
        return features
