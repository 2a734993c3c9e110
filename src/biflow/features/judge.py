"""A small convolutional classifier that judges samples of small images; it is trained on real images only."""

from torch import Tensor, nn


class Judge(nn.Module):
    """Reads the class of small images, and gives the features that Frechet distances are measured in."""

    WIDTH, FEATURE_WIDTH, GRID = 32, 64, 4

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        width = self.WIDTH
        self.trunk = nn.Sequential(
            *(nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(width, width, 3, padding=1), nn.ReLU()),
            nn.MaxPool2d(2),
            *(nn.Conv2d(width, 2 * width, 3, padding=1), nn.ReLU()),
            nn.AdaptiveAvgPool2d(self.GRID),
            nn.Flatten(),
            *(nn.Linear(2 * width * self.GRID**2, self.FEATURE_WIDTH), nn.ReLU()),
        )
        self.readout = nn.Linear(self.FEATURE_WIDTH, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """images (B, P, H, W) in [-1, 1] -> logits (B, num_classes)."""
        return self.readout(self.features(images))

    def features(self, images: Tensor) -> Tensor:
        """images (B, P, H, W) in [-1, 1] -> features (B, F), the last hidden layer."""
        return self.trunk(images)
