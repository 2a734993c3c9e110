"""How much of the classes the flow's features hold: linear probing of every layer of every block."""

import torch
from torch import Tensor

from biflow.data.datasets import ImageSet
from biflow.extras import require
from biflow.models.forward_flow import ForwardFlow, LayerIndex
from biflow.models.model import Model

BATCH_SIZE = 256
ITERATIONS = 1000


def probe(model: Model, train: ImageSet, test: ImageSet, *, seed: int = 0) -> dict[LayerIndex, float]:
    """The share of test images that a linear classifier of each layer's features gets right, by (block, layer).

    Features are the mean over patches of the layer's output for images with the training noise and no label; each is
    scaled to unit variance over the training images, on which a logistic regression (scikit-learn's) is then fitted.
    """
    require("sklearn")
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    places = all_places(model.flow)
    seen, held_out = (mean_features(model, images, places, seed=seed) for images in (train, test))
    found = {}
    for place in places:
        classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=ITERATIONS))
        classifier.fit(seen[place].numpy(), train.labels.numpy())
        found[place] = float(classifier.score(held_out[place].numpy(), test.labels.numpy()))
    return found


def all_places(flow: ForwardFlow) -> list[LayerIndex]:
    """Every (block, layer), both counted from 1, block 1 at the data."""
    counts = flow.config.flow.block_layers
    return [(block, layer) for block, count in enumerate(counts, start=1) for layer in range(1, count + 1)]


@torch.no_grad()
def mean_features(model: Model, images: ImageSet, places: list[LayerIndex], *, seed: int) -> dict[LayerIndex, Tensor]:
    """The mean over patches of the features at each place: (N, C), float32, on the CPU."""
    chunks: dict[LayerIndex, list[Tensor]] = {place: [] for place in places}
    for indices in torch.arange(len(images)).split(BATCH_SIZE):
        patches = model.noisy_patches(images.images[indices], indices.tolist(), "probe", seed)
        no_label = torch.full((len(indices),), model.config.null_label, device=patches.device)
        for place, features in model.flow(patches, no_label, places).features.items():
            chunks[place].append(features.mean(dim=1).float().cpu())
    return {place: torch.cat(parts) for place, parts in chunks.items()}
