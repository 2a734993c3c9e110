"""The server of the page: this machine's, with nothing open that the page does not need."""

import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from typing import Any

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
    refuse_large_images()
    with tempfile.TemporaryDirectory(prefix="biflow-app-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        page = make_page(studio).queue(max_size=MOST_WAITING, api_open=False)
        try:
            limits = {"app_kwargs": app_options(host)}
            _, address, _ = page.launch(**launch_options(gr), **limits, server_name=host, server_port=port)
        except OSError:
            raise InputError(f"Expected a free port of {host}; {port} is none. Choose another: --port.") from None
        try:
            yield address
        finally:
            page.close(verbose=False)


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
    return {"openapi_url": None, "docs_url": None, "redoc_url": None, "middleware": guards}


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
        kind = (b"content-type", b"text/plain; charset=utf-8")
        await send({"type": "http.response.start", "status": 411 if unknown else 413, "headers": [kind]})
        text = f"Expected at most {self.most // 2**20} MiB at once, and their length. Choose fewer files."
        await send({"type": "http.response.body", "body": text.encode()})


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
