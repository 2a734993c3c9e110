"""A small convolutional classifier, trained on the run's own images, whose feature maps compare images."""

from torch import Tensor, nn


class Classifier(nn.Module):
    """Two convolutional stages, the second at half resolution, global average pooling and a linear readout.

    Separate from `Judge`: a model must not be trained on the network that evaluates it.
    """

    WIDTH = 32

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.fine = _stage(channels, self.WIDTH, stride=1)
        self.coarse = _stage(self.WIDTH, 2 * self.WIDTH, stride=2)
        self.readout = nn.Linear(2 * self.WIDTH, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """The flow's data (B, P, H, W) -> logits (B, num_classes)."""
        return self.readout(self.maps(images)[-1].mean(dim=(2, 3)))

    def maps(self, images: Tensor) -> list[Tensor]:
        """The flow's data (B, P, H, W) -> feature maps of both stages, (B, F, H, W) and (B, 2F, H / 2, W / 2)."""
        fine = self.fine(images)
        return [fine, self.coarse(fine)]


def _stage(channels: int, width: int, *, stride: int) -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(channels, width, 3, stride=stride, padding=1), nn.GELU()),
        *(nn.Conv2d(width, width, 3, padding=1), nn.GELU()),
    )
