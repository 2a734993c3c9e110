"""Serves the page locally and disables everything in Gradio that the page does not need."""

import errno
import os
import socket
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from typing import Any
from urllib.parse import urlsplit

from PIL import Image

from biflow.app.backend import MAX_PIXELS, Backend
from biflow.app.controls import import_gradio
from biflow.app.tabs import make_page
from biflow.errors import InputError

LOCAL = ("127.0.0.1", "localhost", "::1")
MAX_FILE_SIZE = "32mb"  # of one upload
MAX_BODY_BYTES = 512 * 2**20  # of all uploads in one request
MAX_QUEUE = 20  # requests waiting behind the one that runs


@contextmanager
def serve(backend: Backend, *, host: str, port: int) -> Iterator[str]:
    """Serve the page until the context exits, which deletes all uploads; yields the address."""
    gr = import_gradio()
    check_address(host, port)
    refuse_large_images()
    with tempfile.TemporaryDirectory(prefix="biflow-app-") as folder:
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
    """Options of the FastAPI app: no API docs, limits on request size, host and origin."""
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    middleware = [Middleware(LimitBody, max_bytes=MAX_BODY_BYTES)]
    if host in LOCAL:  # against DNS rebinding and cross-site requests
        middleware.append(Middleware(TrustedHostMiddleware, allowed_hosts=[*LOCAL, "[::1]"]))
        middleware.append(Middleware(LocalOriginOnly))
    return {"openapi_url": None, "docs_url": None, "redoc_url": None, "middleware": middleware}


class LocalOriginOnly:
    """ASGI middleware that rejects cross-site requests other than GET and HEAD."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Forward the request, or respond with 403."""
        origin = dict(scope.get("headers") or ()).get(b"origin")
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD") or origin is None or is_local(origin):
            await self.app(scope, receive, send)
            return
        await respond(send, 403, "Expected a request from this app's own page. Open its address in the browser.")


def is_local(origin: bytes) -> bool:
    """Whether an Origin header names a server on this machine.

    >>> is_local(b"http://127.0.0.1:7860"), is_local(b"http://evil.example"), is_local(b"null")
    (True, False, False)
    """
    try:
        parts = urlsplit(origin.decode("latin-1"))
        return parts.scheme == "http" and parts.hostname in LOCAL
    except ValueError:
        return False


async def respond(send: Any, status: int, text: str) -> None:
    """Send a plain-text ASGI response."""
    content_type = (b"content-type", b"text/plain; charset=utf-8")
    await send({"type": "http.response.start", "status": status, "headers": [content_type]})
    await send({"type": "http.response.body", "body": text.encode()})


class LimitBody:
    """ASGI middleware that rejects too large request bodies before they are read."""

    def __init__(self, app: Any, max_bytes: int) -> None:
        self.app, self.max_bytes = app, max_bytes

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Forward the request, or respond with 411 or 413."""
        headers = dict(scope.get("headers") or ())
        chunked = b"transfer-encoding" in headers  # has no content-length
        if scope["type"] != "http" or not (chunked or int(headers.get(b"content-length", b"0")) > self.max_bytes):
            await self.app(scope, receive, send)
            return
        text = f"Expected at most {self.max_bytes // 2**20} MiB at once, with a Content-Length. Select fewer files."
        await respond(send, 411 if chunked else 413, text)


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
