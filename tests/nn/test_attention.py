import pytest
import torch

from biflow.config import TransformerConfig
from biflow.nn.embeddings import RotaryPositions, rotate
from biflow.nn.transformer import Transformer

CONFIG = TransformerConfig(width=16, head_width=8)


def transformer(causal: bool) -> Transformer:
    torch.manual_seed(0)
    return Transformer(CONFIG, 2, causal=causal).double().eval()


def test_decoding_with_a_cache_equals_one_full_pass():
    net, x = transformer(causal=True), torch.randn(3, 6, 16, dtype=torch.float64)
    caches = net.new_caches(3, 6)
    steps = [net(x[:, t : t + 1], caches) for t in range(6)]
    torch.testing.assert_close(torch.cat(steps, dim=1), net(x), rtol=0, atol=1e-12)


def test_causal_attention_ignores_what_comes_later():
    net, x = transformer(causal=True), torch.randn(2, 6, 16, dtype=torch.float64)
    changed = x.clone()
    changed[:, 4:] = torch.randn(2, 2, 16, dtype=torch.float64)
    torch.testing.assert_close(net(x)[:, :4], net(changed)[:, :4], rtol=0, atol=0)


def test_full_attention_sees_what_comes_later():
    net, x = transformer(causal=False), torch.randn(2, 6, 16, dtype=torch.float64)
    changed = x.clone()
    changed[:, 5] = torch.randn(2, 16, dtype=torch.float64)
    assert not torch.allclose(net(x)[:, 0], net(changed)[:, 0])


def test_cache_is_allocated_once():
    net = transformer(causal=True)
    caches = net.new_caches(1, 4)
    where = [cache.keys.data_ptr() for cache in caches]
    for _ in range(4):
        net(torch.randn(1, 1, 16, dtype=torch.float64), caches)
    assert [cache.keys.data_ptr() for cache in caches] == where


@pytest.mark.parametrize("parts", [[1, 1, 1, 1, 1, 1], [2, 3, 1], [1, 5], [6]])
def test_decoding_several_patches_at_once_equals_one_full_pass(parts):
    net, x = transformer(causal=True), torch.randn(3, 6, 16, dtype=torch.float64)
    rotary = RotaryPositions(6, 8).double()
    caches, done, start = net.new_caches(3, 6), [], 0
    for part in parts:
        done.append(net(x[:, start : start + part], caches, rotary=rotary(start, part)))
        start += part
    torch.testing.assert_close(torch.cat(done, dim=1), net(x, rotary=rotary(0, 6)), rtol=0, atol=1e-12)


def test_a_shortened_cache_drops_the_last_patches():
    net, x = transformer(causal=True), torch.randn(2, 5, 16, dtype=torch.float64)
    caches = net.new_caches(2, 5)
    net(x[:, :3], caches)
    net(torch.randn(2, 2, 16, dtype=torch.float64), caches)  # a guess
    for cache in caches:
        cache.length = 3
    torch.testing.assert_close(net(x[:, 3:], caches), net(x)[:, 3:], rtol=0, atol=1e-12)


def test_temperature_acts_on_each_sample_separately():
    net, x = transformer(causal=True), torch.randn(2, 6, 16, dtype=torch.float64)
    mixed = net(x, temperature=torch.tensor([1.0, 2.0], dtype=torch.float64))
    torch.testing.assert_close(mixed[:1], net(x)[:1], rtol=0, atol=1e-12)
    assert not torch.allclose(mixed[1], net(x)[1])


def test_infinite_temperature_attends_uniformly():
    net = Transformer(CONFIG, 1, causal=False).double()
    attention, x = net.layers[0].attention, torch.randn(1, 4, 16, dtype=torch.float64)
    values = attention.qkv(x)[..., 32:].mean(dim=1, keepdim=True).expand(1, 4, 16)
    blurred = attention(x, temperature=torch.full((1,), 1e12, dtype=torch.float64))
    torch.testing.assert_close(blurred, attention.out(values))


def test_rotary_products_depend_on_the_offset_along_rows_and_columns():
    rotary = RotaryPositions(16, 8).double()
    query, key = torch.randn(2, 8, dtype=torch.float64)
    rotated = [rotate(each.expand(1, 1, 16, 8), rotary(0, 16))[0, 0] for each in (query, key)]
    products = (rotated[0] @ rotated[1].T).reshape(4, 4, 4, 4)  # row, column of the query; row, column of the key
    torch.testing.assert_close(products[0, 0, 1, 2], products[2, 1, 3, 3])
    torch.testing.assert_close(products[1, 1, 1, 1], query @ key)
    assert not torch.isclose(products[0, 0, 1, 2], products[0, 0, 2, 1])


def test_rotary_leaves_the_prefix_unrotated():
    table = RotaryPositions(4, 8, prefix=2)(0, 6)
    x = torch.randn(1, 1, 6, 8)
    assert torch.equal(rotate(x, table)[:, :, :3], x[:, :, :3])  # the first position of the grid has angle 0 as well
    assert not torch.allclose(rotate(x, table)[:, :, 3:], x[:, :, 3:])


def test_query_key_norm_makes_attention_invariant_to_the_scale_of_queries():
    config = TransformerConfig(width=16, head_width=8, qk_norm=True)
    attention = Transformer(config, 1, causal=False).double().layers[0].attention
    x = torch.randn(1, 4, 16, dtype=torch.float64)
    before = attention(x)
    with torch.no_grad():
        attention.qkv.weight[:16] *= 3
        attention.qkv.bias[:16] *= 3
    torch.testing.assert_close(attention(x), before, rtol=1e-5, atol=1e-5)
