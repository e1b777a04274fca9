"""A small convolutional digit classifier: the judge of generated digits."""

from __future__ import annotations

from torch import Tensor, nn


class DigitClassifier(nn.Module):
    """Classifies 32x32 digits in [-1, 1].

    Attributes:
        num_features: Width of `features`.
    """

    num_features: int = 64

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width_in, width_out in ((1, 16), (16, 32), (32, 64)):
            layers += [
                nn.Conv2d(width_in, width_out, 3, padding=1, bias=False),
                nn.BatchNorm2d(width_out),
                nn.ReLU(),
                nn.MaxPool2d(2),
            ]
        self.trunk = nn.Sequential(*layers)
        self.project = nn.Linear(64 * 4 * 4, self.num_features)
        self.head = nn.Linear(self.num_features, 10)

    def features(self, x: Tensor) -> Tensor:
        """Maps images (B, 1, 32, 32) to (B, 64), the input of the last layer."""
        out: Tensor = self.project(self.trunk(x).flatten(1)).relu()
        return out

    def forward(self, x: Tensor) -> Tensor:
        """Maps images (B, 1, 32, 32) to logits (B, 10)."""
        logits: Tensor = self.head(self.features(x))
        return logits


class DigitFeatures(nn.Module):
    """The classifier's features as a module whose forward returns them.

    This is what `torchmetrics.image.fid.FrechetInceptionDistance(feature=...)` asks of a custom
    network: it reads `num_features` and calls the module on the images.

    Attributes:
        num_features: Width of the output.
    """

    def __init__(self, classifier: DigitClassifier) -> None:
        super().__init__()
        self.classifier = classifier
        self.num_features = classifier.num_features

    def forward(self, x: Tensor) -> Tensor:
        """Maps images (B, 1, 32, 32) in [-1, 1] to (B, num_features)."""
        return self.classifier.features(x)
