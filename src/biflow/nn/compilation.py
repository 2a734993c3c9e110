"""torch.compile, layer by layer: transformer layers of one shape share a graph."""

import warnings

import torch
from torch import nn

from biflow.nn.transformer import TransformerLayer

GRAPHS = 64


def compile_layers(module: nn.Module, device: torch.device) -> bool:
    """Compile every transformer layer in place; returns False if there are none or torch.compile fails here."""
    layers = [part for part in module.modules() if isinstance(part, TransformerLayer)]
    if not layers or not can_compile(device):
        return False
    # dynamo counts all layers as one function, and a process may use many shapes, precisions and modes
    torch._dynamo.config.recompile_limit = max(GRAPHS, torch._dynamo.config.recompile_limit)
    for layer in layers:
        layer.compile()
    return True


def can_compile(device: torch.device) -> bool:
    """Whether torch.compile works for this device; warns with the reason if not."""
    try:
        torch.compile(torch.nn.functional.gelu)(torch.zeros(64, device=device))
    except Exception as error:  # a missing compiler raises several types
        lines = filter(None, map(str.strip, str(error).splitlines()))
        reason = next((line for line in lines if not line.endswith(":")), type(error).__name__)
        warnings.warn(f"Continuing without torch.compile, which fails on this machine ({reason}).", stacklevel=2)
        return False
    return True


def uncompile(module: nn.Module) -> None:
    """Revert `compile_layers`."""
    for part in module.modules():
        part._compiled_call_impl = None
