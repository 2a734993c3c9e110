"""A small convolutional classifier that is trained on a run's own images; what it sees on the way compares them."""

from torch import Tensor, nn


class Classifier(nn.Module):
    """Two stages of convolutions, the second at half the resolution, and a readout of their average over places.

    It is no `Judge`: a model that learned from the network that judges it would flatter itself.
    """

    WIDTH = 32

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.fine = _stage(channels, self.WIDTH, stride=1)
        self.coarse = _stage(self.WIDTH, 2 * self.WIDTH, stride=2)
        self.readout = nn.Linear(2 * self.WIDTH, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """what the flow models (B, P, H, W) -> logits (B, num_classes)."""
        return self.readout(self.maps(images)[-1].mean(dim=(2, 3)))

    def maps(self, images: Tensor) -> list[Tensor]:
        """what the flow models (B, P, H, W) -> features of both stages, (B, F, H, W) and (B, 2F, H / 2, W / 2)."""
        fine = self.fine(images)
        return [fine, self.coarse(fine)]


def _stage(channels: int, width: int, *, stride: int) -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(channels, width, 3, stride=stride, padding=1), nn.GELU()),
        *(nn.Conv2d(width, width, 3, padding=1), nn.GELU()),
    )
