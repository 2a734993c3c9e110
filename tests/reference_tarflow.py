"""TARFlow written down a second time, straight from its formulas: no cache, no batching, one patch after another.

It works on the names and shapes of an ml-tarflow state dict, in the precision of its tensors.
"""

import torch
from torch import Tensor

HEAD = 64


class ReferenceTARFlow:
    """state: the tensors of a file; labels are (B,), -1 for no label, or None for an unconditional pass."""

    def __init__(self, state: dict[str, Tensor], dtype: torch.dtype) -> None:
        self.state = {name: tensor.to(dtype) for name, tensor in state.items()}
        self.blocks = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
        self.layers = 1 + max(int(name.split(".")[3]) for name in state if ".attn_blocks." in name)

    def forward(self, x: Tensor, labels: Tensor | None) -> tuple[list[Tensor], Tensor]:
        """Patches (B, T, D) -> the state after each block, and log|dz/dx| (B,)."""
        states, log_det = [], torch.zeros_like(x[:, 0, 0])
        for i in range(self.blocks):
            x = x.flip(1) if i % 2 else x
            a, b = self.predict(i, x, labels, 1.0)
            x = (x - b) * torch.exp(-a)
            log_det = log_det - a.sum((1, 2))
            x = x.flip(1) if i % 2 else x
            states.append(x)
        return states, log_det

    def inverse(
        self, z: Tensor, labels: Tensor | None, weight: float, annealed: bool, what: str, temperature: float
    ) -> Tensor:
        """Noise (B, T, D) -> data, guided."""
        x, last = z * self.state["var"].sqrt(), z.shape[1] - 1
        for i in reversed(range(self.blocks)):
            z = x.flip(1) if i % 2 else x
            x = z.clone()
            for t in range(1, last + 1):
                a, b = self.predict(i, x, labels, 1.0)
                a_u, b_u = self.predict(i, x, None, temperature)
                w = weight * t / last if annealed else weight
                if "a" in what:
                    a = a + w * (a - a_u)
                if "b" in what:
                    b = b + w * (b - b_u)
                x[:, t] = z[:, t] * torch.exp(a[:, t]) + b[:, t]
            x = x.flip(1) if i % 2 else x
        return x

    def predict(self, i: int, x: Tensor, labels: Tensor | None, temperature: float) -> tuple[Tensor, Tensor]:
        """Log-scale and shift of each patch, from those before it in reading order."""
        s, name = self.state, f"blocks.{i}."
        positions = s[name + "pos_embed"]
        h = x @ s[name + "proj_in.weight"].T + s[name + "proj_in.bias"] + (positions.flip(0) if i % 2 else positions)
        if name + "class_embed" in s:
            table = s[name + "class_embed"][:, 0]
            labels = torch.full_like(x[:, 0, 0], -1, dtype=torch.long) if labels is None else labels
            null = table.mean(0).float().to(table.dtype)  # a parameter like the others, so as exact as float32
            rows = torch.where((labels < 0)[:, None], null, table[labels.clamp(min=0)])
            h = h + rows[:, None]
        for j in range(self.layers):
            layer = f"{name}attn_blocks.{j}."
            h = h + self.attention(layer + "attention.", h, temperature)
            hidden = self.linear(layer + "mlp.main.0", self.norm(layer + "mlp.norm", h))
            h = h + self.linear(layer + "mlp.main.2", 0.5 * hidden * (1 + torch.erf(hidden / 2**0.5)))
        out = self.linear(name + "proj_out", h)
        out = torch.cat([torch.zeros_like(out[:, :1]), out[:, :-1]], dim=1)
        return out.tensor_split(2, dim=-1)

    def attention(self, name: str, h: Tensor, temperature: float) -> Tensor:
        """One causal attention, head by head."""
        length, width = h.shape[1:]
        q, k, v = self.linear(name + "qkv", self.norm(name + "norm", h)).split(width, dim=-1)
        future = torch.ones(length, length, dtype=torch.bool).triu(1)
        mixed = []
        for head in range(0, width, HEAD):
            qh, kh, vh = (part[..., head : head + HEAD] for part in (q, k, v))
            logits = qh @ kh.transpose(1, 2) / HEAD**0.5 / temperature
            mixed.append(logits.masked_fill(future, -torch.inf).softmax(-1) @ vh)
        return self.linear(name + "proj", torch.cat(mixed, dim=-1))

    def linear(self, name: str, h: Tensor) -> Tensor:
        """A linear map."""
        return h @ self.state[name + ".weight"].T + self.state[name + ".bias"]

    def norm(self, name: str, h: Tensor) -> Tensor:
        """A layer norm."""
        centred = h - h.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return scaled * self.state[name + ".weight"] + self.state[name + ".bias"]
