"""The reverse model: noise -> image in a single forward pass (BiFlow, arXiv 2512.10953).

Levels are numbered as in the flow: `hidden[i]` and its head correspond to the flow's `states[i]`. The blocks run from
the noise to the data: block S-1 first, block 0 last, then the denoising block.
"""

from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import NamedTuple

import torch
from torch import Tensor, nn

from biflow.config import ModelConfig, ReverseConfig
from biflow.errors import InputError
from biflow.nn.embeddings import ClassEmbedding, GuidanceEmbedding, PositionEmbedding, RotaryPositions
from biflow.nn.transformer import Transformer
from biflow.tensors import without_wrappers

DIGEST_SIZE = 16

Evaluate = Callable[[nn.Module, Tensor], Tensor]
"""(block, hidden state (B, T, C)) -> hidden state (B, T, C)."""


class ReversePass(NamedTuple):
    """Output of the reverse model."""

    image: Tensor  # (B, T, D), patches of the clean image, or of the noisy one if denoising is not learned
    hidden: list[Tensor]  # one (B, T, C) per flow block; hidden[0] is at the noisy image


class ReverseBlock(nn.Module):
    """A bidirectional transformer that maps the hidden state to the next level down, with class tokens in context."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        reverse = _reverse_config(config)
        self.classes = ClassEmbedding(config.num_classes, reverse.width, reverse.class_tokens)
        self.transformer = Transformer(reverse, reverse.layers, causal=False)
        prefix, turned = reverse.class_tokens, reverse.positions == "rotary"
        self.rotary = RotaryPositions(config.num_patches, reverse.head_width, prefix) if turned else None

    def forward(self, hidden: Tensor, labels: Tensor, strength: Tensor | float = 0.0) -> Tensor:
        """hidden (B, T, C), labels (B,), embedded guidance strength (B, 1, C) or 0 -> (B, T, C)."""
        tokens = self.classes(labels) + strength  # (B, class_tokens, C)
        sequence = torch.cat([tokens, hidden], dim=1)
        rotary = self.rotary(0, sequence.shape[1]) if self.rotary is not None else None
        return self.transformer(sequence, rotary=rotary)[:, tokens.shape[1] :]


class ReverseModel(nn.Module):
    """A reverse block per flow block, an optional denoising block, and a head per level to predict the flow's state.

    With hidden alignment, the heads are used only in training. With hidden distillation, each block receives only the
    state that the previous level's head predicts, projected back to the model's width.
    """

    state_rms: Tensor  # (levels,), root mean square of the flow's states
    flow_digest: Tensor  # hash of the flow that this model was fitted to; zero before fitting

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = _reverse_config(config)
        width, levels = self.config.width, config.flow.blocks
        self.project_in = nn.Linear(config.patch_dim, width)
        learned = self.config.positions == "learned"
        self.positions = PositionEmbedding(config.num_patches, width) if learned else nn.Identity()
        self.strengths = GuidanceEmbedding(width) if self.config.guidance == "trained" else None
        self.blocks = nn.ModuleList(ReverseBlock(config) for _ in range(levels))
        self.denoise = ReverseBlock(config) if self.config.denoising == "learned" else None
        self.project_out = _head(width, config.patch_dim)
        # without learned denoising the image is the state of level 0, predicted by project_out
        self.first_head = 0 if self.denoise else 1
        heads = 0 if self.config.strategy == "naive" else levels - self.first_head
        self.heads = nn.ModuleList(_head(width, config.patch_dim) for _ in range(heads))
        lifts = heads if self.config.strategy == "distillation" else 0
        self.lifts = nn.ModuleList(nn.Linear(config.patch_dim, width) for _ in range(lifts))
        self.register_buffer("state_rms", torch.ones(levels))
        self.register_buffer("flow_digest", torch.zeros(DIGEST_SIZE, dtype=torch.uint8))
        self.patch_size, self.num_classes, self.null_label = config.patch_size, config.num_classes, config.null_label

    def forward(
        self, z: Tensor, labels: Tensor, guidance: float | Tensor = 0.0, denoise: float | Tensor | None = None
    ) -> ReversePass:
        """Noise z (B, T, D) and labels (B,) -> `ReversePass`.

        guidance: strength w, one for all images or one each (B,); 0 turns it off. denoise: that of the denoising block,
        if it is another. Trained guidance costs a single evaluation. Otherwise each guided block runs with and without
        the label, as one doubled batch, and its output is (1 + w) * with - w * without (BiFlow, eq. 4).
        """
        blocks = self._guided(z, labels, guidance)
        return self._run_blocks(z, blocks, blocks if denoise is None else self._guided(z, labels, denoise))

    def _guided(self, z: Tensor, labels: Tensor, guidance: float | Tensor) -> Evaluate:
        """How a block is evaluated at this strength."""
        if self.strengths is not None:
            strength = self.strengths(guidance if isinstance(guidance, Tensor) else z.new_tensor([guidance]))
            return lambda block, state: block(state, labels, strength)
        if not isinstance(guidance, Tensor) and not guidance:
            return lambda block, state: block(state, labels)
        weight = guidance[:, None, None].to(self.project_in.weight) if isinstance(guidance, Tensor) else guidance
        doubled_labels = torch.cat([labels, torch.full_like(labels, self.null_label)])

        def extrapolate(block: nn.Module, state: Tensor) -> Tensor:
            doubled = block(torch.cat([state, state]), doubled_labels)  # (2B, T, C)
            batch = labels.shape[0]  # slices, and not split: torch.export would fix the batch size
            return (1 + weight) * doubled[:batch] - weight * doubled[batch:]

        return extrapolate

    def forward_recovered(self, z: Tensor, labels: Tensor, guidance: Tensor) -> ReversePass:
        """Forward pass for training guidance: each block's guided output is converted back to a conditional state.

        guidance: strength w (B,), 0 for null labels. With guided output g and unconditional output u, which has no
        gradient, the conditional state is (g + w * u) / (1 + w) (BiFlow, eq. 5).
        """
        assert self.strengths is not None  # guidance is "trained"
        strength, nothing = self.strengths(guidance), self.strengths(torch.zeros_like(guidance[:1]))
        rows = guidance.nonzero().flatten()  # guided images; computed once, since it synchronises the GPU
        weight, null = guidance[rows, None, None], torch.full_like(rows, self.null_label)

        def recover(block: nn.Module, state: Tensor) -> Tensor:
            guided = block(state, labels, strength)
            with torch.no_grad():
                without = block(state.index_select(0, rows), null, nothing)
            conditional = (guided.index_select(0, rows) + weight * without) / (1 + weight)
            return guided.index_copy(0, rows, conditional.to(guided.dtype))

        return self._run_blocks(z, recover, recover)

    def record_flow(self, flow: nn.Module) -> None:
        """Record a hash of the flow that this model is fitted to."""
        self.flow_digest.copy_(_digest(flow))

    def matches_flow(self, flow: nn.Module) -> bool:
        """Whether this model was fitted to this flow; True before fitting."""
        return not self.flow_digest.any() or bool(torch.equal(self.flow_digest.cpu(), _digest(flow)))

    def _run_blocks(self, z: Tensor, evaluate: Evaluate, evaluate_denoise: Evaluate) -> ReversePass:
        """Run all blocks from the noise to the image, the last one as `evaluate_denoise(block, state)`."""
        state = self.positions(self.project_in(z.to(self.project_in.weight.dtype)))  # (B, T, C)
        hidden: list[Tensor] = []
        for level in reversed(range(len(self.blocks))):
            if hidden and self.lifts:  # distillation: only the predicted state of the flow is passed on
                state = self._distilled(state, level + 1)
            state = evaluate(self.blocks[level], state)
            hidden.append(state)
        if self.denoise is not None:
            state = evaluate_denoise(self.denoise, self._distilled(state, 0) if self.lifts else state)
        return ReversePass(self.project_out(state), hidden[::-1])

    def _distilled(self, state: Tensor, level: int) -> Tensor:
        """Hidden state (B, T, C) -> the flow's state (B, T, D) predicted at this level -> hidden state (B, T, C)."""
        index = level - self.first_head
        return self.positions(self.lifts[index](self.heads[index](state)))

    def read_heads(self, hidden: Sequence[Tensor]) -> list[Tensor]:
        """Predict the flow's states, each (B, T, D) in the flow's units, from `hidden`; levels `first_head` and up."""
        levels = zip(self.heads, hidden[self.first_head :], self.state_rms[self.first_head :], strict=True)
        return [head(state) * rms for head, state, rms in levels]

    def read_states(self, reverse_pass: ReversePass) -> list[Tensor]:
        """The flow's states[0] to states[S-1] predicted by one pass, each (B, T, D) in the flow's units."""
        if self.config.strategy == "naive":
            raise InputError(
                "Expected a reverse model that predicts the flow's states; this one was trained with strategy 'naive', "
                "which predicts only the image. Train with model.reverse.strategy=alignment."
            )
        return [reverse_pass.image][: self.first_head] + self.read_heads(reverse_pass.hidden)


def _digest(network: nn.Module) -> Tensor:
    digest = blake2b(digest_size=DIGEST_SIZE)
    tensors = {without_wrappers(name): tensor for name, tensor in network.state_dict().items()}
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return torch.tensor(list(digest.digest()), dtype=torch.uint8)


def _head(width: int, patch_dim: int) -> nn.Linear:
    """A head that predicts 0 at first."""
    head = nn.Linear(width, patch_dim)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def _reverse_config(config: ModelConfig) -> ReverseConfig:
    if config.reverse is None:
        raise InputError("Expected a model config with a reverse model; got one without. Add model.reverse.")
    return config.reverse
