"""Serves the page locally and disables everything in Gradio that the page does not need."""

import errno
import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from typing import Any

from PIL import Image

from biflow.app.backend import MAX_PIXELS, Backend
from biflow.app.controls import import_gradio
from biflow.app.middleware import LOCAL, LimitBody, LocalOriginOnly, NoFrames, OwnAddress
from biflow.app.tabs import make_page
from biflow.app.traces import short_errors, upload_folder
from biflow.errors import InputError

MAX_FILE_SIZE = "32mb"  # of one upload
MAX_BODY_BYTES = 512 * 2**20  # of all uploads in one request
MAX_QUEUE = 20  # requests waiting behind the one that runs


@contextmanager
def serve(backend: Backend, *, host: str, port: int) -> Iterator[str]:
    """Serve the page until the context exits; yields the address."""
    gr = import_gradio()
    check_address(host, port)
    refuse_large_images()
    with upload_folder() as folder, short_errors():
        os.environ["GRADIO_TEMP_DIR"] = folder
        page = make_page(backend).queue(max_size=MAX_QUEUE, api_open=False)
        try:
            limits = {"app_kwargs": app_options(host)}
            _, address, _ = page.launch(**launch_options(gr), **limits, server_name=url_host(host), server_port=port)
        except OSError:  # the port was taken after check_address
            raise port_error(host, port) from None
        try:
            yield address
        finally:
            page.close(verbose=False)


def check_address(host: str, port: int) -> None:
    """Raise unless the server can listen here: the address belongs to this machine, and the port is available."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(address)
    except OSError as error:
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            raise port_error(host, port) from None
        raise InputError(
            f"Expected an address of this machine; got {host!r}. Omit --host, or use 0.0.0.0 for all interfaces."
        ) from None


def url_host(host: str) -> str:
    """A host as written in a URL: IPv6 addresses in brackets.

    >>> url_host("127.0.0.1"), url_host("::1")
    ('127.0.0.1', '[::1]')
    """
    return f"[{host}]" if ":" in host else host


def port_error(host: str, port: int) -> InputError:
    """The error for a port that is in use or not permitted."""
    return InputError(f"Expected a free port on {host}; {port} is not available. Choose another with --port.")


def launch_options(gr: Any) -> dict[str, Any]:
    """Options of `gr.Blocks.launch`: no public link, no API, no access to local paths, no second server."""
    css = (resources.files("biflow.app") / "app.css").read_text(encoding="utf-8")
    closed = {"share": False, "allowed_paths": [], "show_error": False, "strict_cors": True, "mcp_server": False}
    quiet = {"quiet": True, "inbrowser": False, "enable_monitoring": False, "run_history": False, "footer_links": []}
    plain = {"ssr_mode": False, "pwa": False, "prevent_thread_lock": True, "css": css, "theme": make_theme(gr)}
    return {**closed, **quiet, **plain, "max_file_size": MAX_FILE_SIZE}


def app_options(host: str) -> dict[str, Any]:
    """Options of the FastAPI app: no API docs, no frames, limits on request size, host and origin."""
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    middleware = [Middleware(NoFrames), Middleware(OwnAddress), Middleware(LimitBody, max_bytes=MAX_BODY_BYTES)]
    if host in LOCAL:  # against DNS rebinding and cross-site requests
        middleware.append(Middleware(TrustedHostMiddleware, allowed_hosts=[*LOCAL, "[::1]"]))
        middleware.append(Middleware(LocalOriginOnly))
    return {"openapi_url": None, "docs_url": None, "redoc_url": None, "middleware": middleware}


def refuse_large_images() -> None:
    """Make Pillow refuse images with too many pixels before decoding them; applies to the whole process."""
    Image.MAX_IMAGE_PIXELS = MAX_PIXELS
    warnings.simplefilter("error", Image.DecompressionBombWarning)


def make_theme(gr: Any) -> Any:
    """The Gradio theme; uses system fonts, so that none is downloaded."""
    accent = ["#fbf1ec", "#f6ded3", "#edbca8", "#e8a083", "#e8805a", "#c9572f", "#b4441f", "#963718", "#742b14"]
    return gr.themes.Base(
        primary_hue=gr.themes.Color(*accent, "#5c2311", "#3d170b"),
        neutral_hue="stone",
        text_size="md",
        radius_size="sm",
        font=("system-ui", "sans-serif"),
        font_mono=("ui-monospace", "monospace"),
    ).set(
        body_background_fill="#fbfaf7",
        body_background_fill_dark="#17161b",
        body_text_color="#1c1b22",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_text_color="white",
        block_label_text_color="*body_text_color",
        slider_color="*primary_600",
        body_text_color_subdued="#6a6873",
        body_text_color_subdued_dark="#a3a0a8",
        block_info_text_color="#6a6873",
        block_info_text_color_dark="#a3a0a8",
        block_title_text_color="*body_text_color",
        button_secondary_background_fill="white",
        button_secondary_background_fill_dark="*neutral_800",
        button_secondary_border_color="*neutral_300",
        button_border_width="1px",
        border_color_primary="#e4e1da",
        border_color_primary_dark="#3a3840",
        block_background_fill_dark="#201f25",
        input_background_fill_dark="#2b2a31",
    )
