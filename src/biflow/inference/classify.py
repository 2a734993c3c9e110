"""Which class an image is of, by the likelihood of the flow alone (FlowBack, arXiv 2511.22345, algorithm 1)."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from biflow.config import ClassifyMethod, ClassifyNoise
from biflow.data.randomness import content_keys
from biflow.errors import InputError, check_number, choose
from biflow.models.forward_flow import ForwardFlow
from biflow.models.model import Model

BATCH_SIZE = 128
STEPS = 10


class Classification(NamedTuple):
    """How well each class suits each image; on the CPU, float64."""

    logits: Tensor  # (N, K): log p(image | class) up to a number that is the same for all classes, or an estimate of it

    @property
    def probabilities(self) -> Tensor:
        """(N, K): of the classes given the image, all classes alike beforehand."""
        return self.logits.softmax(dim=1)

    @property
    def labels(self) -> Tensor:
        """(N,): the class that suits best."""
        return self.logits.argmax(dim=1)

    def __repr__(self) -> str:
        """What it holds, in one line."""
        return f"Classification(labels={self.labels}, probabilities of shape {tuple(self.logits.shape)})"


def by_gradient(flow: ForwardFlow, patches: Tensor) -> Tensor:
    """One gradient of the log-likelihood at the mean of all classes: patches (B, T, D) -> logits (B, K).

    With e_b the mean over classes of block b's vectors E_b[k], the logits are `sum_b <E_b[k] - e_b, d log p / d e_b>`:
    the first term of log p(x | k) around e, and K times the gradient that algorithm 1 takes the largest of.
    """
    tables = class_tables(flow)
    means = [table.mean(dim=0).expand(len(patches), 1, -1).clone().requires_grad_() for table in tables]
    gradients = gradient_of_log_prob(flow, patches, means)
    terms = [gradient[:, 0] @ (table - table.mean(dim=0)).T for gradient, table in zip(gradients, tables, strict=True)]
    return torch.stack(terms).sum(dim=0)


def by_steps(flow: ForwardFlow, patches: Tensor) -> Tensor:
    """The same in ten smaller steps: each moves the mixture of classes, softmax of the logits (B, K), uphill."""
    tables = class_tables(flow)
    count = len(tables[0])
    logits = patches.new_zeros(len(patches), count)
    for _ in range(STEPS):
        shares = logits.softmax(dim=1)  # (B, K)
        mixtures = [(shares @ table)[:, None].requires_grad_() for table in tables]
        gradients = gradient_of_log_prob(flow, patches, mixtures)
        pulls = [gradient[:, 0] @ table.T for gradient, table in zip(gradients, tables, strict=True)]
        pull = torch.stack(pulls).sum(dim=0)  # (B, K), d log p / d share
        logits = logits + count / STEPS * shares * (pull - (shares * pull).sum(dim=1, keepdim=True))
    return logits


@torch.no_grad()
def by_bayes(flow: ForwardFlow, patches: Tensor) -> Tensor:
    """Bayes' rule with every class tried, one pass for each: patches (B, T, D) -> log p(x | k), (B, K) nats."""
    classes = torch.arange(flow.config.num_classes, device=patches.device)
    return torch.stack([flow.log_prob(patches, label.expand(len(patches))) for label in classes], dim=1)


METHODS: Mapping[ClassifyMethod, Callable[[ForwardFlow, Tensor], Tensor]] = {
    "gradient": by_gradient,
    "steps": by_steps,
    "bayes": by_bayes,
}


@torch.inference_mode(False)  # it needs gradients wherever it is called
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

    noise: "training" adds what the flow was trained with, "uniform" spreads grey levels over their bins, "none" adds
    nothing; logits are averaged over this many draws.  Noise is drawn for the seed and the image's own values, so what
    an image is called does not depend on those beside it.
    """
    if not model.config.num_classes:
        raise InputError(
            "Expected a model with classes to classify with; this one is unconditional. Train one with classes."
        )
    check_number(draws, "draws", least=1, whole=True)
    check_number(seed, "seed", whole=True)
    if not len(pixels):
        raise InputError("Expected one or more images to classify; got none.")
    logits_of = choose(METHODS, method, "method")
    chunks = []
    for part in pixels.split(BATCH_SIZE):
        keys, drawn = content_keys(part), []
        for k in range(draws):
            patches = model.noisy_patches(part, keys, "classify", seed, k, noise=noise)
            drawn.append(logits_of(model.flow, patches).detach().double().cpu())
        chunks.append(torch.stack(drawn).mean(dim=0))
    found = Classification(torch.cat(chunks))
    if broken := int((~found.logits.isfinite()).any(dim=1).sum()):
        warnings.warn(
            f"{broken} of {len(pixels)} images have no finite likelihood; their classes mean nothing.", stacklevel=2
        )
    return found


class Guess(NamedTuple):
    """One line of what `classify` says of an image."""

    image: str
    rank: int
    label: int
    name: str
    probability: float


def best_guesses(found: Classification, names: Sequence[str], class_names: Sequence[str], *, top: int) -> list[Guess]:
    """The most probable classes of every image, best first; ranks count from 1."""
    best = found.probabilities.topk(min(top, len(class_names)), dim=1)
    return [
        Guess(name, rank, label, class_names[label], probability)
        for name, labels, probabilities in zip(names, best.indices.tolist(), best.values.tolist(), strict=True)
        for rank, (label, probability) in enumerate(zip(labels, probabilities, strict=True), start=1)
    ]


def class_tables(flow: ForwardFlow) -> list[Tensor]:
    """Each block's vectors of the classes, (K, C), without that of the null label."""
    return [block.classes.weight.detach()[: flow.config.num_classes] for block in flow.flow_blocks]


@torch.enable_grad()
def gradient_of_log_prob(flow: ForwardFlow, patches: Tensor, conditions: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """d log p(patches) / d each block's vector (B, 1, C)."""
    return torch.autograd.grad(flow.log_prob_of(flow.forward_conditioned(patches, conditions)).sum(), conditions)
