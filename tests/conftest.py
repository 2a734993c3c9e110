"""Settings for every test: one thread, no network; and what several tests share."""

import functools
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading

import pytest
import torch

from biflow.cli import main as cli
from biflow.errors import InputError

os.environ["HF_HUB_OFFLINE"] = "1"
torch.set_num_threads(1)

PLAYWRIGHT = "playwright-core@1.65.1"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


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


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files and says nothing."""

    def log_message(self, *_):
        pass


@pytest.fixture
def serve():
    """A function: folder -> the address it is served at."""
    servers = []

    def serve(folder):
        handler = functools.partial(Quiet, directory=str(folder))
        servers.append(http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}/"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="session")
def playwright(tmp_path_factory):
    """The folder of playwright-core, of npm."""
    for tool in ("node", "npm"):
        if not shutil.which(tool):
            pytest.skip(f"needs {tool}")
    if CHROMIUM is None:
        pytest.skip("needs Chromium")
    folder = tmp_path_factory.mktemp("npm")
    command = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", folder, PLAYWRIGHT]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip(f"needs {PLAYWRIGHT}, which npm cannot fetch")
    return folder / "node_modules" / "playwright-core"


@pytest.fixture
def visit(playwright, serve, tmp_path):
    """A function: a model folder, and a script that drives Chromium -> what it found on the model's playground.

    The page makes no error, and asks nobody but its own server.
    """

    from biflow.export.playground import write_site

    def visit(model, script):
        try:
            write_site(model, tmp_path / "site")
        except InputError as error:
            pytest.skip(str(error))
        address = serve(tmp_path / "site")
        command = ["node", str(script), str(playwright), CHROMIUM, address]
        done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert found["errors"] == []
        assert {host for host in found["hosts"] if host not in {"data:", "blob:"}} == {address[7:-1]}
        return found

    return visit
