"""Classifier-free guidance as arithmetic on what a flow block predicts."""

from biflow.errors import InputError
from biflow.models.flow_block import Affine


def extrapolate(conditional: Affine, unconditional: Affine, strength: float) -> Affine:
    """Both predictions moved away from the unconditional one; strength 0 changes nothing.

    Linear in the shift and in the log-scale, as TARFlow guides (arXiv 2412.06329).
    """
    return Affine(*(c + strength * (c - u) for c, u in zip(conditional, unconditional, strict=True)))


def check_guidance(strength: float) -> None:
    """Guidance counts from 0, which means none."""
    if not strength >= 0:
        raise InputError(f"Expected guidance of 0 (none) or more; got {strength:g}.")
