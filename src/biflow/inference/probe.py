"""Linear probing of the flow's features, for every layer of every block."""

import torch
from torch import Tensor

from biflow.data.datasets import ImageSet
from biflow.extras import require
from biflow.models.forward_flow import ForwardFlow, LayerIndex
from biflow.models.model import Model

BATCH_SIZE = 256
ITERATIONS = 1000


def probe(model: Model, train: ImageSet, test: ImageSet, *, seed: int = 0) -> dict[LayerIndex, float]:
    """Test accuracy of a linear classifier on each layer's features, by (block, layer).

    Features are the layer's outputs averaged over patches, for images with training noise and the null label, scaled to
    unit variance. The classifier is scikit-learn's logistic regression, fitted to the training images.
    """
    require("sklearn")
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    layers = all_layers(model.flow)
    train_features, test_features = (mean_features(model, images, layers, seed=seed) for images in (train, test))
    accuracy = {}
    for layer in layers:
        classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=ITERATIONS))
        classifier.fit(train_features[layer].numpy(), train.labels.numpy())
        accuracy[layer] = float(classifier.score(test_features[layer].numpy(), test.labels.numpy()))
    return accuracy


def all_layers(flow: ForwardFlow) -> list[LayerIndex]:
    """Every (block, layer) of a flow."""
    counts = flow.config.flow.block_layers
    return [(block, layer) for block, count in enumerate(counts, start=1) for layer in range(1, count + 1)]


@torch.no_grad()
def mean_features(model: Model, images: ImageSet, layers: list[LayerIndex], *, seed: int) -> dict[LayerIndex, Tensor]:
    """Features of each layer averaged over patches: (N, C), float32, on the CPU."""
    chunks: dict[LayerIndex, list[Tensor]] = {layer: [] for layer in layers}
    for indices in torch.arange(len(images)).split(BATCH_SIZE):
        patches = model.noisy_patches(images.images[indices], indices.tolist(), "probe", seed)
        null_labels = torch.full((len(indices),), model.config.null_label, device=patches.device)
        for layer, features in model.flow(patches, null_labels, layers).features.items():
            chunks[layer].append(features.mean(dim=1).float().cpu())
    return {layer: torch.cat(parts) for layer, parts in chunks.items()}
