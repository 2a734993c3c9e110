"""Model folders on the Hugging Face hub: found by name, and uploaded with their card."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from biflow.checkpoint import CONFIG_FILE, TRAINING_FILE, WEIGHTS_FILE, save_model
from biflow.data.images import write_images
from biflow.errors import InputError
from biflow.files import write_text
from biflow.hub.card import read_evaluation, render_card
from biflow.models.model import Model

CARD_FILE, PICTURE_FILE = "README.md", "samples.png"
FILES = [CONFIG_FILE, WEIGHTS_FILE, TRAINING_FILE, CARD_FILE]
SHOWN = 20  # samples on a card
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")  # owner/name


def find_model(
    name: str | Path, *, revision: str | None = None, token: str | None = None, local_files_only: bool = False
) -> Path:
    """A local folder as it is; else the folder that the hub's repository of this name was downloaded to.

    revision: a branch, tag or commit of the repository.
    """
    path = Path(name)
    if path.exists() or not REPOSITORY.fullmatch(str(name)) or str(name).startswith("."):
        if revision:
            raise InputError(f"Expected a name on the hub for revision {revision!r}; got the folder {name}.")
        return path
    from huggingface_hub import snapshot_download

    try:
        found = snapshot_download(
            str(name), revision=revision, token=token, local_files_only=local_files_only, allow_patterns=FILES
        )
    except Exception as error:  # of the network, the hub or the disk, of a dozen types
        raise InputError(
            f"Expected a model folder, or a name on the Hugging Face hub that can be reached; there is no folder "
            f"{name}, and the hub {hub_fault(error)}. Give a folder, or check name, network and token."
        ) from None
    return Path(found)


def hub_fault(error: Exception) -> str:
    """What went wrong with the hub, in words."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "is not asked, since HF_HUB_OFFLINE is set"
    return f"gives none ({type(error).__name__})"


def check_repository(name: str) -> None:
    """Raise unless this can be the name of a repository."""
    if not REPOSITORY.fullmatch(name):
        raise InputError(f"Expected a repository of the form owner/name; got {name!r}.")


def check_codec_can_be_shared(codec: str) -> None:
    """Raise if the codec is an autoencoder in a folder of this machine, which nobody else has."""
    name = codec.removeprefix("vae:")
    if codec != "pixels" and Path(name).exists():
        raise InputError(
            f"Expected an autoencoder of the hub, for others to decode with; this model's is the folder {name}. Upload "
            "it, and write its name into config.json: vae:OWNER/NAME."
        )


def write_upload(
    model: Model,
    folder: Path,
    repository: str,
    *,
    training: Mapping[str, Any] | None,
    evaluation: str | Path | None,
    licence: str | None,
    samples: Callable[[Tensor], Tensor],
) -> None:
    """Write what is uploaded: model folder, card, and if there is a reverse model a grid of samples.

    samples: a function labels (N,) -> pixels (N, P, H, W).
    """
    check_repository(repository)
    check_codec_can_be_shared(model.config.codec)
    measured = read_evaluation(Path(evaluation)) if evaluation else None
    picture = PICTURE_FILE if model.reverse else None
    card = render_card(model, repository, training, measured, licence=licence, picture=picture)
    save_model(model, folder, training)
    if picture:
        labels = torch.arange(SHOWN) % max(1, model.config.num_classes)
        write_images(folder / picture, samples(labels), labels)
    write_text(folder / CARD_FILE, card)


def upload_folder(folder: Path, repository: str, *, private: bool | None, token: str | None) -> str:
    """Upload a folder to a repository of the hub, made if it is not there; returns its address."""
    check_repository(repository)
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    try:
        address = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Upload a biflow model")
    except Exception as error:  # the same
        raise InputError(
            f"Expected to reach {repository!r} on the Hugging Face hub, with a token that may write to it; cannot "
            f"({type(error).__name__}). Log in with hf auth login, and check the name and the network."
        ) from None
    return str(address)
