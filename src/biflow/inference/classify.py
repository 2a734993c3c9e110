"""Classification by the flow's likelihood, without a classifier (FlowBack, arXiv 2511.22345, algorithm 1)."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from biflow.config import ClassifyMethod, ClassifyNoise
from biflow.data.randomness import content_keys
from biflow.errors import InputError, check_number, choose
from biflow.models.forward_flow import ForwardFlow, differentiable
from biflow.models.model import Model

BATCH_SIZE = 128
STEPS = 10


class Classification(NamedTuple):
    """Class logits of N images, float64 on the CPU."""

    logits: Tensor  # (N, K): log p(image | class) up to a constant per image, or an estimate of it

    @property
    def probabilities(self) -> Tensor:
        """(N, K): p(class | image) under a uniform class prior."""
        return self.logits.softmax(dim=1)

    @property
    def labels(self) -> Tensor:
        """(N,): the most probable class."""
        return self.logits.argmax(dim=1)

    def __repr__(self) -> str:
        """A one-line summary."""
        return f"Classification(labels={self.labels}, probabilities of shape {tuple(self.logits.shape)})"


def by_gradient(flow: ForwardFlow, patches: Tensor) -> Tensor:
    """One gradient of the log-likelihood at the mean class embedding: patches (B, T, D) -> logits (B, K).

    With e_b the mean over classes of block b's embeddings E_b[k], the logits are
    `sum_b <E_b[k] - e_b, d log p / d e_b>`: the first-order term of log p(x | k) around e, and K times the gradient
    whose argmax algorithm 1 takes.
    """
    tables = class_tables(flow)
    means = [table.mean(dim=0).expand(len(patches), 1, -1).clone().requires_grad_() for table in tables]
    gradients = gradient_of_log_prob(flow, patches, means)
    terms = [gradient[:, 0] @ (table - table.mean(dim=0)).T for gradient, table in zip(gradients, tables, strict=True)]
    return torch.stack(terms).sum(dim=0)


def by_steps(flow: ForwardFlow, patches: Tensor) -> Tensor:
    """Ten smaller gradient steps on the mixture of classes, the softmax of the logits: patches -> logits (B, K)."""
    tables = class_tables(flow)
    count = len(tables[0])
    logits = patches.new_zeros(len(patches), count)
    for _ in range(STEPS):
        weights = logits.softmax(dim=1)  # (B, K)
        mixtures = [(weights.to(table) @ table)[:, None].requires_grad_() for table in tables]
        gradients = gradient_of_log_prob(flow, patches, mixtures)
        slopes = [gradient[:, 0] @ table.T for gradient, table in zip(gradients, tables, strict=True)]
        slope = torch.stack(slopes).sum(dim=0)  # (B, K), d log p / d weight
        logits = logits + count / STEPS * weights * (slope - (weights * slope).sum(dim=1, keepdim=True))
    return logits


@torch.no_grad()
def by_bayes(flow: ForwardFlow, patches: Tensor) -> Tensor:
    """Bayes' rule, one pass per class: patches (B, T, D) -> log p(x | k), (B, K) in nats."""
    classes = torch.arange(flow.config.num_classes, device=patches.device)
    return torch.stack([flow.log_prob(patches, label.expand(len(patches))) for label in classes], dim=1)


METHODS: Mapping[ClassifyMethod, Callable[[ForwardFlow, Tensor], Tensor]] = {
    "gradient": by_gradient,
    "steps": by_steps,
    "bayes": by_bayes,
}


@torch.inference_mode(False)  # needs gradients even in the caller's inference mode
def classify_images(
    model: Model,
    pixels: Tensor,
    *,
    method: ClassifyMethod = "gradient",
    noise: ClassifyNoise = "training",
    draws: int = 1,
    seed: int = 0,
) -> Classification:
    """Classify uint8 images (N, P, H, W).

    noise: "training" adds the flow's training noise, "uniform" dequantises, "none" adds nothing. Logits are averaged
    over this many draws. Noise depends on the seed and the image's own values, not on the batch.
    """
    if not model.config.num_classes:
        raise InputError("Expected a model with classes to classify with; this one is unconditional. Train one.")
    check_number(draws, "draws", least=1, whole=True)
    check_number(seed, "seed", whole=True)
    if not len(pixels):
        raise InputError("Expected one or more images to classify; got none.")
    logits_of, flow = choose(METHODS, method, "method"), differentiable(model.flow)
    chunks = []
    for part in pixels.split(BATCH_SIZE):
        keys, logits = content_keys(part), []
        for k in range(draws):
            patches = model.noisy_patches(part, keys, "classify", seed, k, noise=noise)
            logits.append(logits_of(flow, patches).detach().double().cpu())
        chunks.append(torch.stack(logits).mean(dim=0))
    result = Classification(torch.cat(chunks))
    if broken := int((~result.logits.isfinite()).any(dim=1).sum()):
        what = f"{broken} of {len(pixels)} images have a NaN or Inf likelihood"
        warnings.warn(f"{what}; their classes are meaningless.", stacklevel=2)
    return result


class Guess(NamedTuple):
    """One predicted class of an image."""

    image: str
    rank: int
    label: int
    name: str
    probability: float


def best_guesses(result: Classification, names: Sequence[str], class_names: Sequence[str], *, top: int) -> list[Guess]:
    """The most probable classes of each image, best first; ranks count from 1."""
    best = result.probabilities.topk(min(top, len(class_names)), dim=1)
    return [
        Guess(name, rank, label, class_names[label], probability)
        for name, labels, probabilities in zip(names, best.indices.tolist(), best.values.tolist(), strict=True)
        for rank, (label, probability) in enumerate(zip(labels, probabilities, strict=True), start=1)
    ]


def class_tables(flow: ForwardFlow) -> list[Tensor]:
    """Each block's class embeddings (K, C), without the null label."""
    return [block.classes.weight.detach()[: flow.config.num_classes] for block in flow.flow_blocks]


@torch.enable_grad()
def gradient_of_log_prob(flow: ForwardFlow, patches: Tensor, conditions: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Gradients of log p(patches) by each block's condition (B, 1, C)."""
    return torch.autograd.grad(flow.log_prob_of(flow.forward_conditioned(patches, conditions)).sum(), conditions)
