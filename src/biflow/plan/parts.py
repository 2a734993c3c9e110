"""What the parts of the networks cost for one image: operations, and bytes that a backward pass reads.

Operations are counted as torch.utils.flop_counter counts them: two for each multiply-add of matrix products and of
attention, causal attention in full, and nothing for all else.  A backward pass takes twice the operations of a linear
map, one of them for the gradient of its input, and 2.5 times those of attention, whose scores are computed again.
Bytes are those of the tensors that autograd saves, one by one.
"""

from dataclasses import dataclass, fields

from biflow.config import ModelConfig, ReverseConfig, TransformerConfig

FULL = 4  # bytes of a value in float32


@dataclass(frozen=True)
class Cost:
    """What one pass costs for one image; costs add up, and can be taken several times."""

    linear: float = 0.0  # operations of linear maps
    first: float = 0.0  # those of linear maps whose input needs no gradient
    attention: float = 0.0  # operations of attention
    kept: float = 0.0  # bytes that the backward pass reads
    spared: float = 0.0  # those of them that recomputing the layers does not keep

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(self)))

    def __rmul__(self, times: float) -> "Cost":
        return Cost(*(times * getattr(self, each.name) for each in fields(self)))

    @property
    def forward(self) -> float:
        """Operations without a gradient."""
        return self.linear + self.first + self.attention

    @property
    def trained(self) -> float:
        """Operations with the gradient of the parameters."""
        return 3 * self.linear + 2 * self.first + 3.5 * self.attention

    @property
    def differentiated(self) -> float:
        """Operations with the gradient of the input alone."""
        return 2 * (self.linear + self.first) + 3.5 * self.attention


NOTHING = Cost()


def linear(inputs: float, outputs: float, *, kept: float = 0.0, given: bool = False) -> Cost:
    """A linear map of one patch that keeps so many bytes; given: its input needs no gradient."""
    operations = 2 * inputs * outputs
    return Cost(first=operations, kept=kept) if given else Cost(linear=operations, kept=kept)


def layer(config: TransformerConfig, tokens: float, *, seen: float | None = None, value: int = FULL) -> Cost:
    """One transformer layer over so many tokens, each attending to as many or to `seen`; value: bytes of a value."""
    width, hidden = config.width, _hidden(config)
    weights = 4 * width**2 + (3 if config.mlp == "swiglu" else 2) * width * hidden
    kept = tokens * (_kept_by_attention(config, value) + _kept_by_mlp(config, value))
    attention = 4 * tokens * (tokens if seen is None else seen) * width
    return Cost(2 * tokens * weights, 0.0, attention, kept, kept - tokens * FULL * width)


def layer_at_work(config: TransformerConfig, value: int = FULL) -> float:
    """Bytes a token that the backward pass of a layer holds at most beside what the forward pass kept."""
    return (2 if config.mlp == "swiglu" else 1) * value * _hidden(config) + 2 * FULL * config.width


def _hidden(config: TransformerConfig) -> int:
    return round(config.width * config.mlp_ratio)


def _kept_by_norm(config: TransformerConfig, value: int) -> float:
    """The input and its statistics; for RMS the input before its gain; what the linear map after it reads."""
    statistics, apart = (1, FULL * config.width) if config.norm == "rms" else (2, 0)
    return FULL * (config.width + statistics) + apart + value * config.width


def _kept_by_attention(config: TransformerConfig, value: int) -> float:
    """The norm; queries, keys and values; their mixture, and one log of a sum for each head."""
    width, heads = config.width, config.width // config.head_width
    kept = _kept_by_norm(config, value) + 4 * value * width + FULL * heads
    if config.qk_norm or config.positions == "rotary":
        kept += 2 * value * width  # queries and keys as attention reads them
    if config.qk_norm:
        copies = 2 if value < FULL else 1  # in float32: before the gain, and before the norm if that was not
        kept += 2 * FULL * (copies * width + heads)  # of queries and keys
        kept += value * width  # the mixture in the order of patches
    return kept


def _kept_by_mlp(config: TransformerConfig, value: int) -> float:
    """The norm, and the hidden values before and after their non-linearity."""
    return _kept_by_norm(config, value) + (4 if config.mlp == "swiglu" else 2) * value * _hidden(config)


def flow_block(
    model: ModelConfig, level: int, *, value: int = FULL, tokens: float | None = None, given: bool = False
) -> Cost:
    """One whole block of the flow; level 0 is the one at the data.  given: its input needs no gradient."""
    depth = model.flow.block_layers[level]
    return flow_layers(model, depth, value=value, tokens=tokens, given=given) + affine(model, value, tokens)


def flow_layers(
    model: ModelConfig, depth: int, *, value: int = FULL, tokens: float | None = None, given: bool = False
) -> Cost:
    """The first layers of a block of the flow, with what comes before them."""
    tokens = model.num_patches if tokens is None else tokens
    patch_in = linear(model.patch_dim, model.flow.width, kept=value * model.patch_dim, given=given)
    return tokens * patch_in + depth * layer(model.flow, tokens, value=value)


def affine(model: ModelConfig, value: int = FULL, tokens: float | None = None) -> Cost:
    """What follows the layers of a block of the flow: the affine map and its outcome."""
    flow, dim = model.flow, model.patch_dim
    parts = 1 if flow.volume_preserving else 2
    kept = value * flow.width + (1 + parts) * FULL * dim  # the input, the outcome, and the factors of a product
    kept += parts * value * dim if flow.clip is not None else 0
    return (model.num_patches if tokens is None else tokens) * linear(flow.width, parts * dim, kept=kept)


def flow(model: ModelConfig, *, value: int = FULL, tokens: float | None = None, given: bool = False) -> Cost:
    """All blocks of the flow; given: the data need no gradient."""
    cost = NOTHING
    for level in range(model.flow.blocks):
        cost += flow_block(model, level, value=value, tokens=tokens, given=given and level == 0)
    return cost


def reverse_config(model: ModelConfig) -> ReverseConfig:
    """The config of the reverse model, which must be there."""
    assert model.reverse is not None
    return model.reverse


def reverse_block(model: ModelConfig, value: int = FULL) -> Cost:
    """One block of the reverse model."""
    reverse = reverse_config(model)
    return reverse.layers * layer(reverse, model.num_patches + reverse.class_tokens, value=value)


def reverse_blocks(model: ModelConfig) -> int:
    """Blocks of the reverse model, the denoising one among them."""
    return model.flow.blocks + (reverse_config(model).denoising == "learned")


def reverse_levels(model: ModelConfig) -> int:
    """Levels of the reverse model that have a head."""
    reverse = reverse_config(model)
    return 0 if reverse.strategy == "naive" else model.flow.blocks - (reverse.denoising != "learned")


def head(model: ModelConfig, value: int = FULL) -> Cost:
    """One head of the reverse model, which reads a state of the flow or the image, and its difference from it."""
    reverse = reverse_config(model)
    kept = FULL * 2 + value * reverse.width + FULL * model.patch_dim
    return model.num_patches * linear(reverse.width, model.patch_dim, kept=kept)


def reverse_pass(model: ModelConfig, value: int = FULL) -> Cost:
    """One pass of the reverse model, as it samples without guidance or with guidance that was trained in."""
    reverse, dim = reverse_config(model), model.patch_dim
    tokens = model.num_patches
    cost = tokens * linear(dim, reverse.width, kept=value * dim, given=True)
    cost += reverse_blocks(model) * reverse_block(model, value) + head(model, value)
    if reverse.strategy == "distillation":
        lift = tokens * linear(dim, reverse.width, kept=value * dim)
        cost += reverse_levels(model) * (head(model, value) + lift)
    return cost
