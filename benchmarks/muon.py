"""Time one Muon step on the matrices of the digits' flow: torch.optim.Muon against biflow's batched version.

    python benchmarks/muon.py

Prints milliseconds per step, the fastest of several, on one CPU thread.
"""

import argparse

import torch
from machine import seconds

from biflow.config import FlowFitConfig, load_recipe
from biflow.models.forward_flow import ForwardFlow
from biflow.nn.transformer import layer_matrices
from biflow.training.optim import make_muon


def main() -> None:
    """Time both optimizers."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    torch.set_num_threads(1)
    flow, device = ForwardFlow(load_recipe("biflow_digits").model), torch.device("cpu")
    matrices = layer_matrices(flow)
    for matrix in matrices:
        matrix.grad = torch.randn_like(matrix)
    optimizers = {"torch.optim.Muon": torch.optim.Muon(matrices), "biflow": make_muon(flow, matrices, FlowFitConfig())}
    for name, optimizer in optimizers.items():
        print(f"{name}: {1e3 * seconds(optimizer.step, device):.0f} ms per step")


if __name__ == "__main__":
    main()
