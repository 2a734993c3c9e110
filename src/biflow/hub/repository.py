"""Model folders on the Hugging Face hub: downloaded by name, and uploaded with a model card."""

import re
import tempfile
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
    """The local folder of this name; otherwise the folder to which the hub's repository was downloaded.

    revision: branch, tag or commit of the repository.
    """
    path = Path(name)
    if path.exists() or not REPOSITORY.fullmatch(str(name)) or str(name).startswith("."):
        if revision:
            raise InputError(f"Expected a name on the hub for revision {revision!r}; got the folder {name}.")
        return path
    from huggingface_hub import constants, snapshot_download

    where: Any = {"revision": revision, "token": token, "local_files_only": local_files_only}
    try:
        return Path(snapshot_download(str(name), allow_patterns=FILES, **where))
    except Exception as error:  # network, hub and disk raise a dozen types
        offline = "is not used because HF_HUB_OFFLINE is set"
        fault = offline if constants.HF_HUB_OFFLINE else f"request failed ({type(error).__name__})"
        raise InputError(
            f"Expected a model folder or the name of a model on the Hugging Face hub; there is no folder {name}, and "
            f"the hub {fault}. Give a folder, or check name, network and token."
        ) from None


def check_upload(codec: str, repository: str) -> None:
    """Raise unless the name is valid, and others can load the codec."""
    if not REPOSITORY.fullmatch(repository):
        raise InputError(f"Expected a repository name of the form owner/name; got {repository!r}.")
    name = codec.removeprefix("vae:")
    if codec != "pixels" and Path(name).exists():
        raise InputError(
            f"Expected an autoencoder on the hub, so that others can decode; got the local folder {name}. Upload it, "
            "and set codec in config.json to vae:OWNER/NAME."
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
    """Write the files to upload: model folder, card, and a grid of samples if there is a reverse model.

    samples: a function from labels (N,) to pixels (N, P, H, W).
    """
    check_upload(model.config.codec, repository)
    measured = read_evaluation(Path(evaluation)) if evaluation else None
    picture = PICTURE_FILE if model.reverse else None
    card = render_card(model, repository, training, measured, licence=licence, picture=picture)
    save_model(model, folder, training)
    if picture:
        labels = torch.arange(SHOWN) % max(1, model.config.num_classes)
        write_images(folder / picture, samples(labels), labels)
    write_text(folder / CARD_FILE, card)


def upload(write: Callable[[Path], None], repository: str, *, private: bool | None, token: str | None) -> str:
    """Upload the folder that `write` makes to a repository on the hub, created if missing; returns its URL."""
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as temporary:
        write(folder := Path(temporary) / "model")
        try:
            address = api.create_repo(repository, private=private, exist_ok=True)
            api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Upload a biflow model")
        except Exception as error:  # as above
            raise InputError(
                f"Expected write access to {repository!r} on the Hugging Face hub; the upload failed "
                f"({type(error).__name__}). Log in with hf auth login, and check the name and the network."
            ) from None
    return str(address)
