"""The demo's network, small enough to train in a minute on two cores: 106,122 parameters."""

from torch import nn


class ConvNet(nn.Sequential):
    """Two convolutions and two linear layers for 28 x 28 gray images, ten classes. [n 1 28 28] -> [n 10]."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 16, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(32 * 7 * 7, 64),
            nn.ReLU(),
            nn.Linear(64, 10),
        )


def convnet() -> ConvNet:
    """The network, untrained: what `demo.network:convnet` names on the command line."""
    return ConvNet()
