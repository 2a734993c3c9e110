"""The counts that benchmarks rest on."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from biflow.config import FlowConfig
from biflow.models.forward_flow import ForwardFlow
from tests.builders import tiny_config

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def training_step(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location("training_step", BENCHMARKS / "training_step.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.modules.pop("machine", None)


@pytest.mark.parametrize(
    "changes", [{"layers": 2}, {"layers": (1, 3, 1)}, {"mlp": "swiglu", "mlp_ratio": 2.5}, {"volume_preserving": True}]
)
def test_operations_are_those_that_torch_counts_with_half_of_attention(training_step, changes):
    config = tiny_config(flow=FlowConfig(**{"blocks": 3, "width": 16, "head_width": 8, **changes}))
    flow = ForwardFlow(config)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        flow(torch.randn(1, 4, 4), torch.zeros(1, dtype=torch.long))
    counts = counter.get_flop_counts()["Global"]
    attention = sum(count for name, count in counts.items() if "bmm" in str(name))
    expected = counter.get_total_flops() - attention / 2
    assert training_step.forward_operations(config) == expected
