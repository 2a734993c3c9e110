"""The server of the page: this machine's, with nothing open that the page does not need."""

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

from biflow.app.desk import import_gradio
from biflow.app.studio import Studio
from biflow.app.tabs import make_page
from biflow.app.uploads import MOST_PIXELS
from biflow.errors import InputError

LOCAL = ("127.0.0.1", "localhost", "::1")
MOST_BYTES = "32mb"  # of an upload
MOST_BODY = 512 * 2**20  # bytes of all uploads that are sent together
MOST_WAITING = 20  # requests behind the one that is worked on


@contextmanager
def serve(studio: Studio, *, host: str, port: int) -> Iterator[str]:
    """The page at this address for as long as the context lasts; uploads are kept until then, and deleted."""
    gr = import_gradio()
    check_address(host, port)
    refuse_large_images()
    with tempfile.TemporaryDirectory(prefix="biflow-app-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        page = make_page(studio).queue(max_size=MOST_WAITING, api_open=False)
        try:
            limits = {"app_kwargs": app_options(host)}
            _, address, _ = page.launch(**launch_options(gr), **limits, server_name=bracketed(host), server_port=port)
        except OSError:  # taken since it was looked at
            raise taken(host, port) from None
        try:
            yield address
        finally:
            page.close(verbose=False)


def check_address(host: str, port: int) -> None:
    """Raise where one cannot listen: the address is none of this machine, or the port is in use."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(address)
    except OSError as error:
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            raise taken(host, port) from None
        raise InputError(
            f"Expected an address of this machine; got {host!r}. Leave --host out, or use 0.0.0.0 for all addresses."
        ) from None


def bracketed(host: str) -> str:
    """A host as it is written in an address.

    >>> bracketed("127.0.0.1"), bracketed("::1")
    ('127.0.0.1', '[::1]')
    """
    return f"[{host}]" if ":" in host else host


def taken(host: str, port: int) -> InputError:
    """What to say of a port that cannot be had."""
    return InputError(f"Expected a free port of {host}; {port} is none. Choose another: --port.")


def launch_options(gr: Any) -> dict[str, Any]:
    """Nothing but the page: no public link, no API, no paths of this machine, no second server."""
    css = (resources.files("biflow.app") / "app.css").read_text(encoding="utf-8")
    closed = {"share": False, "allowed_paths": [], "show_error": False, "strict_cors": True, "mcp_server": False}
    quiet = {"quiet": True, "inbrowser": False, "enable_monitoring": False, "run_history": False, "footer_links": []}
    plain = {"ssr_mode": False, "pwa": False, "prevent_thread_lock": True, "css": css, "theme": make_theme(gr)}
    return {**closed, **quiet, **plain, "max_file_size": MOST_BYTES}


def app_options(host: str) -> dict[str, Any]:
    """No description of the server's routes, no request that is too long, none under another machine's name."""
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    guards = [Middleware(LimitBody, most=MOST_BODY)]
    if host in LOCAL:  # or else a site could have its own name point to this machine
        guards.append(Middleware(TrustedHostMiddleware, allowed_hosts=[*LOCAL, "[::1]"]))
        guards.append(Middleware(OwnPages))
    return {"openapi_url": None, "docs_url": None, "redoc_url": None, "middleware": guards}


class OwnPages:
    """Answers a request that another site's page has a browser send, unless it only reads (ASGI)."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass the request on, unless it is another site's."""
        origin = dict(scope.get("headers") or ()).get(b"origin")
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD") or origin is None or is_local(origin):
            await self.app(scope, receive, send)
            return
        await answer(send, 403, "Expected a request of this app's own page. Open its address in the browser.")


def is_local(origin: bytes) -> bool:
    """Whether a page is of a server of this machine.

    >>> is_local(b"http://127.0.0.1:7860"), is_local(b"http://evil.example"), is_local(b"null")
    (True, False, False)
    """
    try:
        parts = urlsplit(origin.decode("latin-1"))
        return parts.scheme == "http" and parts.hostname in LOCAL
    except ValueError:
        return False


async def answer(send: Any, status: int, text: str) -> None:
    """One sentence instead of what was asked for (ASGI)."""
    kind = (b"content-type", b"text/plain; charset=utf-8")
    await send({"type": "http.response.start", "status": status, "headers": [kind]})
    await send({"type": "http.response.body", "body": text.encode()})


class LimitBody:
    """Answers a request whose body is too long before it is read (ASGI)."""

    def __init__(self, app: Any, most: int) -> None:
        self.app, self.most = app, most

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass the request on, unless it is too long."""
        headers = dict(scope.get("headers") or ())
        unknown = b"transfer-encoding" in headers  # in pieces, without a length
        if scope["type"] != "http" or not (unknown or int(headers.get(b"content-length", b"0")) > self.most):
            await self.app(scope, receive, send)
            return
        text = f"Expected at most {self.most // 2**20} MiB at once, and their length. Choose fewer files."
        await answer(send, 411 if unknown else 413, text)


def refuse_large_images() -> None:
    """Make Pillow, in all of this process, refuse images of too many pixels before it decodes them."""
    Image.MAX_IMAGE_PIXELS = MOST_PIXELS
    warnings.simplefilter("error", Image.DecompressionBombWarning)


def make_theme(gr: Any) -> Any:
    """Ink on paper, the fonts of the system: none is fetched."""
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
