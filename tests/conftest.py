"""Settings for every test: one thread, no network."""

import os
import sys

import pytest
import torch

from biflow import cli

os.environ["HF_HUB_OFFLINE"] = "1"
torch.set_num_threads(1)


@pytest.fixture
def biflow(monkeypatch, capsys):
    """A function: arguments -> (exit code, what was printed, what was printed as an error)."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["biflow", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        printed = capsys.readouterr()
        return stop.value.code or 0, printed.out, printed.err

    return call


@pytest.fixture(scope="session")
def autoencoder(tmp_path_factory):
    """A folder with a small autoencoder of random weights: 8x8 images of three channels, 4x4 latents of four."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    sizes = {"block_out_channels": (8, 16), "layers_per_block": 1, "latent_channels": 4, "norm_num_groups": 4}
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    folder = tmp_path_factory.mktemp("autoencoder")
    diffusers.AutoencoderKL(**sizes, **blocks, sample_size=8).save_pretrained(folder)
    return folder
