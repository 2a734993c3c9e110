import torch

from biflow.config import TransformerConfig
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
