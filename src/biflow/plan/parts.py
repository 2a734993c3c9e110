"""Cost of the networks' parts for one image: FLOPs, and bytes saved for the backward pass.

FLOPs are counted as by torch.utils.flop_counter: two per multiply-add of matrix products and attention, causal
attention in full, nothing else. The backward pass of a linear layer takes twice its FLOPs, half of them for the input
gradient; that of attention 2.5 times, because the scores are recomputed. Bytes are those of the tensors that autograd
saves, one by one.
"""

from dataclasses import dataclass, fields

from biflow.config import ModelConfig, ReverseConfig, TransformerConfig

FULL = 4  # bytes per float32 value


@dataclass(frozen=True)
class Cost:
    """Cost of a forward pass for one image; supports addition and multiplication by a number."""

    linear: float = 0.0  # FLOPs of linear layers
    first: float = 0.0  # FLOPs of linear layers whose input needs no gradient
    attention: float = 0.0  # FLOPs of attention
    saved: float = 0.0  # bytes saved for the backward pass
    recomputed: float = 0.0  # of which not saved with activation checkpointing

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(self)))

    def __rmul__(self, times: float) -> "Cost":
        return Cost(*(times * getattr(self, each.name) for each in fields(self)))

    @property
    def forward(self) -> float:
        """FLOPs without gradients."""
        return self.linear + self.first + self.attention

    @property
    def trained(self) -> float:
        """FLOPs with parameter gradients."""
        return 3 * self.linear + 2 * self.first + 3.5 * self.attention

    @property
    def differentiated(self) -> float:
        """FLOPs with the input gradient only."""
        return 2 * (self.linear + self.first) + 3.5 * self.attention


NOTHING = Cost()


def linear(inputs: float, outputs: float, *, saved: float = 0.0, no_grad_input: bool = False) -> Cost:
    """A linear layer on one patch that saves this many bytes."""
    flops = 2 * inputs * outputs
    return Cost(first=flops, saved=saved) if no_grad_input else Cost(linear=flops, saved=saved)


def layer(config: TransformerConfig, tokens: float, *, attended: float | None = None, value: int = FULL) -> Cost:
    """One transformer layer; each token attends to all tokens or to `attended` of them. value: bytes per value."""
    width, hidden = config.width, _hidden(config)
    weights = 4 * width**2 + (3 if config.mlp == "swiglu" else 2) * width * hidden
    activations = (4 if config.mlp == "swiglu" else 2) * value * hidden  # before and after the activation
    saved = tokens * (_saved_by_attention(config, value) + _saved_by_norm(config, value) + activations)
    attention = 4 * tokens * (tokens if attended is None else attended) * width
    return Cost(2 * tokens * weights, 0.0, attention, saved, saved - tokens * FULL * width)


def backward_workspace(config: TransformerConfig, value: int = FULL) -> float:
    """Peak bytes per token that a layer's backward pass needs on top of the saved tensors."""
    return (2 if config.mlp == "swiglu" else 1) * value * _hidden(config) + 2 * FULL * config.width


def _hidden(config: TransformerConfig) -> int:
    return round(config.width * config.mlp_ratio)


def _saved_by_norm(config: TransformerConfig, value: int) -> float:
    """The input and its statistics, for RMS norm also the normalised input, and the input of the next linear layer."""
    statistics, normalised = (1, FULL * config.width) if config.norm == "rms" else (2, 0)
    return FULL * (config.width + statistics) + normalised + value * config.width


def _saved_by_attention(config: TransformerConfig, value: int) -> float:
    """The norm; queries, keys and values; the attention output, and one logsumexp per head."""
    width, heads = config.width, config.width // config.head_width
    saved = _saved_by_norm(config, value) + 4 * value * width + FULL * heads
    if config.qk_norm or config.positions == "rotary":
        saved += 2 * value * width  # queries and keys after the norm or rotation
    if config.qk_norm:
        copies = 2 if value < FULL else 1  # in float32: before the gain, and in half precision before the norm
        saved += 2 * FULL * (copies * width + heads)  # of queries and keys
        saved += value * width  # the attention output in patch order
    return saved


def flow_block(
    model: ModelConfig, level: int, *, value: int = FULL, tokens: float | None = None, no_grad_input: bool = False
) -> Cost:
    """One block of the flow; level 0 is next to the data."""
    depth = model.flow.block_layers[level]
    layers = flow_layers(model, depth, value=value, tokens=tokens, no_grad_input=no_grad_input)
    return layers + affine(model, value, tokens)


def flow_layers(
    model: ModelConfig, depth: int, *, value: int = FULL, tokens: float | None = None, no_grad_input: bool = False
) -> Cost:
    """The input projection and the first `depth` layers of a flow block."""
    tokens = model.num_patches if tokens is None else tokens
    patch_in = linear(model.patch_dim, model.flow.width, saved=value * model.patch_dim, no_grad_input=no_grad_input)
    return tokens * patch_in + depth * layer(model.flow, tokens, value=value)


def affine(model: ModelConfig, value: int = FULL, tokens: float | None = None) -> Cost:
    """The output projection and affine map of a flow block."""
    flow, dim = model.flow, model.patch_dim
    parts = 1 if flow.volume_preserving else 2
    saved = value * flow.width + (1 + parts) * FULL * dim  # the input, the output, and the factors of the product
    saved += parts * value * dim if flow.clip is not None else 0
    return (model.num_patches if tokens is None else tokens) * linear(flow.width, parts * dim, saved=saved)


def flow(model: ModelConfig, *, value: int = FULL, tokens: float | None = None, no_grad_input: bool = False) -> Cost:
    """All blocks of the flow."""
    cost = NOTHING
    for level in range(model.flow.blocks):
        cost += flow_block(model, level, value=value, tokens=tokens, no_grad_input=no_grad_input and level == 0)
    return cost


def reverse_config(model: ModelConfig) -> ReverseConfig:
    """The config of the reverse model, which must exist."""
    assert model.reverse is not None
    return model.reverse


def reverse_block(model: ModelConfig, value: int = FULL) -> Cost:
    """One block of the reverse model."""
    reverse = reverse_config(model)
    return reverse.layers * layer(reverse, model.num_patches + reverse.class_tokens, value=value)


def reverse_blocks(model: ModelConfig) -> int:
    """Number of blocks of the reverse model, including the denoising block."""
    return model.flow.blocks + (reverse_config(model).denoising == "learned")


def reverse_levels(model: ModelConfig) -> int:
    """Number of reverse levels with a head."""
    reverse = reverse_config(model)
    return 0 if reverse.strategy == "naive" else model.flow.blocks - (reverse.denoising != "learned")


def head(model: ModelConfig, value: int = FULL) -> Cost:
    """One head of the reverse model, which predicts a state or the image, and its difference from the target."""
    reverse = reverse_config(model)
    saved = FULL * 2 + value * reverse.width + FULL * model.patch_dim
    return model.num_patches * linear(reverse.width, model.patch_dim, saved=saved)


def reverse_pass(model: ModelConfig, value: int = FULL) -> Cost:
    """One pass of the reverse model without guidance or with trained guidance."""
    reverse, dim = reverse_config(model), model.patch_dim
    tokens = model.num_patches
    cost = tokens * linear(dim, reverse.width, saved=value * dim, no_grad_input=True)
    cost += reverse_blocks(model) * reverse_block(model, value) + head(model, value)
    if reverse.strategy == "distillation":
        embed = tokens * linear(dim, reverse.width, saved=value * dim)
        cost += reverse_levels(model) * (head(model, value) + embed)
    return cost
