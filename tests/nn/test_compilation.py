"""Layers are compiled one by one and share their graphs."""

import functools

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from biflow.config import TransformerConfig
from biflow.nn.compilation import compile_layers, uncompile
from biflow.nn.transformer import Transformer, TransformerLayer


@pytest.mark.filterwarnings("ignore")  # Dynamo's own
@torch.no_grad()
def test_layers_of_one_shape_share_one_graph(monkeypatch):
    torch._dynamo.reset()
    counter = CompileCounter()
    compile_eagerly = functools.partialmethod(torch.nn.Module.compile, backend=counter)
    monkeypatch.setattr(TransformerLayer, "compile", compile_eagerly, raising=False)
    monkeypatch.setattr("biflow.nn.compilation.can_compile", lambda _: True)
    net = Transformer(TransformerConfig(width=16, head_width=8), 12, causal=True)
    x = torch.randn(2, 5, 16)
    expected = net(x)
    assert compile_layers(net, x.device)
    torch.testing.assert_close(net(x), expected)
    assert counter.frame_count == 1
    uncompile(net)
    torch.testing.assert_close(net(x), expected)


def test_a_module_without_layers_is_not_compiled():
    assert not compile_layers(torch.nn.Linear(2, 2), torch.device("cpu"))
