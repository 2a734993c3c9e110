"""The parts of a transformer against the formulas of their papers, written out once more."""

import math

import pytest
import torch
import torch.nn.functional as F

from biflow.config import TransformerConfig
from biflow.nn.attention import Attention
from biflow.nn.embeddings import ClassEmbedding, GuidanceEmbedding, PositionEmbedding, RotaryPositions, rotate
from biflow.nn.transformer import SwiGLU, Transformer, TransformerLayer, layer_matrices


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def randomised(module: torch.nn.Module) -> torch.nn.Module:
    for seed, parameter in enumerate(module.double().parameters()):
        parameter.data = parameter.data + 0.3 * random(*parameter.shape, seed=seed)
    return module.eval()


def turned(x: torch.Tensor, side: int) -> torch.Tensor:
    """RoFormer, eq. 16, by complex numbers: pairs of the first half turn with the row, the others with the column."""
    pairs = x.shape[-1] // 4  # per axis
    frequencies = 10_000.0 ** (-torch.arange(pairs, dtype=torch.float64) / pairs)
    places = torch.arange(side * side)
    angles = torch.cat([axis[:, None] * frequencies for axis in (places // side, places % side)], dim=1)
    numbers = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(numbers * torch.polar(torch.ones_like(angles), angles)).flatten(-2)


def test_rotary_positions_are_products_of_complex_numbers():
    x = random(2, 3, 16, 16)
    rotary = RotaryPositions(16, 16).double()
    torch.testing.assert_close(rotate(x, rotary(0, 16)), turned(x, 4), rtol=0, atol=1e-5)


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_attention_is_its_formula(causal, qk_norm):
    layer = Attention(TransformerConfig(width=32, head_width=16, qk_norm=qk_norm), causal=causal)
    randomised(layer)
    x, temperature = random(2, 9, 32), torch.tensor([1.0, 1.7], dtype=torch.float64)
    outputs = (x @ layer.qkv.weight.T + layer.qkv.bias).split(32, dim=-1)  # queries, keys, values
    query, key, value = (part.unflatten(-1, (2, 16)).transpose(1, 2) for part in outputs)
    if qk_norm:
        norm = lambda each, gain: each / (each.square().mean(-1, keepdim=True) + 1e-6).sqrt() * gain  # noqa: E731
        query, key = norm(query, layer.query_norm.weight), norm(key, layer.key_norm.weight)
    query, key = turned(query, 3), turned(key, 3)
    logits = query @ key.mT / math.sqrt(16) / temperature[:, None, None, None]
    if causal:
        logits = logits.masked_fill(torch.ones(9, 9).triu(1).bool(), -torch.inf)
    expected = (logits.softmax(-1) @ value).transpose(1, 2).flatten(2) @ layer.out.weight.T + layer.out.bias
    found = layer(x, rotary=RotaryPositions(9, 16).double()(0, 9), temperature=temperature)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_swiglu_gates_by_the_first_half():
    layer, x = randomised(SwiGLU(6, 10)), random(2, 3, 6)
    outputs = x @ layer.gate_and_up.weight.T + layer.gate_and_up.bias
    gate, up = outputs[..., :10], outputs[..., 10:]
    hidden = gate * gate.sigmoid() * up
    torch.testing.assert_close(layer(x), hidden @ layer.down.weight.T + layer.down.bias)


@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_a_layer_adds_attention_and_mlp_of_the_normalised_input(norm):
    config = TransformerConfig(width=16, head_width=8, norm=norm, mlp_ratio=3.0)
    layer, x = randomised(TransformerLayer(config, causal=False)), random(2, 4, 16)

    def normalised(h: torch.Tensor, part: torch.nn.Module) -> torch.Tensor:
        if norm == "layer":
            return F.layer_norm(h, (16,), part.weight, part.bias)
        return h / (h.square().mean(-1, keepdim=True) + 1e-6).sqrt() * part.weight

    middle = x + layer.attention(normalised(x, layer.attention_norm))
    up, _, down = layer.mlp
    hidden = F.gelu(normalised(middle, layer.mlp_norm) @ up.weight.T + up.bias)
    assert hidden.shape[-1] == 48
    torch.testing.assert_close(layer(x), middle + hidden @ down.weight.T + down.bias)


def test_outputs_are_those_of_the_layers_counted_from_one():
    net, x = randomised(Transformer(TransformerConfig(width=16, head_width=8), 3, causal=True)), random(2, 4, 16)
    after = [x]
    for layer in net.layers:
        after.append(layer(after[-1]))
    found = net.outputs(x, {1, 3})
    assert found.keys() == {1, 3}
    for number, output in found.items():
        torch.testing.assert_close(output, after[number])


def test_matrices_of_layers_are_the_four_of_each():
    net = Transformer(TransformerConfig(width=16, head_width=8), 2, causal=True)
    assert [tuple(each.shape) for each in layer_matrices(net)] == [(48, 16), (16, 16), (64, 16), (16, 64)] * 2


def test_the_guidance_strength_is_embedded_by_waves_of_its_share():
    layer = GuidanceEmbedding(8)
    assert not layer(torch.tensor([0.0, 2.0])).any()  # fresh: no guidance yet
    randomised(layer)
    w = torch.tensor([0.0, 0.3, 1.0, 9.0], dtype=torch.float64)
    angles = (w / (1 + w))[:, None] * 2 ** torch.linspace(0, 5, 16, dtype=torch.float64)
    hidden = torch.cat([angles.sin(), angles.cos()], dim=1) @ layer.hidden.weight.T + layer.hidden.bias
    expected = (hidden * hidden.sigmoid()) @ layer.out.weight.T + layer.out.bias
    torch.testing.assert_close(layer(w), expected[:, None])


def test_classes_and_positions_begin_small_with_one_row_for_no_class():
    classes, positions = ClassEmbedding(300, 32, tokens=2), PositionEmbedding(300, 64)
    assert classes.weight.shape == (301, 64)
    assert torch.equal(classes(torch.tensor([300])).flatten(), classes.weight[300])
    for weight in (classes.weight, positions.weight):
        assert weight.std().item() == pytest.approx(0.01, rel=0.05)
