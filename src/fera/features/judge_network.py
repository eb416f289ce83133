"""The judge's network: a small convolutional trunk with two heads.

One head says which style a picture has. The other one places it so that drawings of one concept lie close together
whatever their style. What the trunk sees at its three scales serves as features of distribution metrics.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

SIDE = 64  # pixels that the network takes
FEATURES = 32 + 64 + 128  # width of the trunk's features: the channels at three scales
EMBEDDING = 64  # width of a concept's embedding


class JudgeNetwork(nn.Module):
    """A trunk for 64x64 pictures, a style head and a concept head.

    Args:
        num_styles: S, styles that it tells apart, at least 2.
    """

    def __init__(self, num_styles: int) -> None:
        super().__init__()
        self.fine = nn.Sequential(_Block(3, 16, stride=2), _Block(16, 32, stride=2), _Residual(32))
        self.middle = nn.Sequential(_Block(32, 64, stride=2), _Residual(64))
        self.coarse = _Block(64, 128, stride=2)
        self.style = nn.Linear(FEATURES, num_styles)
        # Of the map, not of its mean: where things are tells concepts apart.
        self.concept = nn.Linear(128 * (SIDE // 16) ** 2, EMBEDDING)

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Look at pictures.

        Args:
            pictures: shape (B, 3, 64, 64), in [-1, 1].

        Returns:
            The trunk's features, shape (B, 224), at least 0; logits of the styles, shape (B, S); embeddings of the
            concepts, shape (B, 64), of length 1.
        """
        fine = self.fine(pictures)
        middle = self.middle(fine)
        coarse = self.coarse(middle)
        # Strokes and gradients, which make a style, show at fine scales.
        features = torch.cat([maps.mean(dim=(2, 3)) for maps in (fine, middle, coarse)], dim=1)
        embeddings = functional.normalize(self.concept(coarse.flatten(1)), dim=1)
        return features, self.style(features), embeddings


class _Block(nn.Sequential):
    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
        )


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = _Block(channels, channels)
        self.second = nn.Sequential(nn.Conv2d(channels, channels, 3, 1, 1, bias=False), nn.BatchNorm2d(channels))

    def forward(self, maps: Tensor) -> Tensor:
        return torch.relu(maps + self.second(self.first(maps)))
