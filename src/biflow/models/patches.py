"""Images <-> patch sequences in raster order; values in a patch are ordered channel, row, column, as in TARFlow."""

from torch import Tensor


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """images (B, P, H, W) -> patches (B, T, D), T = (H/p)(W/p), D = P*p*p."""
    b, c, h, w = images.shape
    p = patch_size
    x = images.reshape(b, c, h // p, p, w // p, p)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(b, (h // p) * (w // p), c * p * p)


def unpatchify(patches: Tensor, patch_size: int, channels: int) -> Tensor:
    """patches (B, T, D) of square images -> images (B, P, H, W); the inverse of `patchify`."""
    b, t, _ = patches.shape
    p, side = patch_size, round(t**0.5)
    x = patches.reshape(b, side, side, channels, p, p)
    return x.permute(0, 3, 1, 4, 2, 5).reshape(b, channels, side * p, side * p)
