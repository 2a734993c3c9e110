"""What a step of Muon takes for the matrices of the digits' flow: PyTorch's own, and ours that batches them.

    python benchmarks/muon.py

Prints milliseconds a step, the fastest of some, on one thread of this machine's processor.
"""

import torch
from machine import seconds

from biflow.config import FlowFitConfig, load_recipe
from biflow.models.forward_flow import ForwardFlow
from biflow.nn.transformer import layer_matrices
from biflow.training.optim import make_muon


def main() -> None:
    """Time both."""
    torch.set_num_threads(1)
    flow, device = ForwardFlow(load_recipe("biflow_digits").model), torch.device("cpu")
    matrices = layer_matrices(flow)
    for matrix in matrices:
        matrix.grad = torch.randn_like(matrix)
    ways = {"torch.optim.Muon": torch.optim.Muon(matrices), "biflow": make_muon(flow, matrices, FlowFitConfig())}
    for name, optimizer in ways.items():
        print(f"{name}: {1e3 * seconds(optimizer.step, device):.0f} ms a step")


if __name__ == "__main__":
    main()
