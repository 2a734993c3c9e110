"""What the app's server does to every request and response, as ASGI middleware."""

from typing import Any
from urllib.parse import urlsplit

LOCAL = ("127.0.0.1", "localhost", "::1")
CLAIMED = (b"x-forwarded-host", b"x-gradio-server")  # from which Gradio takes the page's own address
POLICY = (b"content-security-policy", b"frame-ancestors 'none'")


class NoFrames:
    """Forbids other pages to show this one in a frame, where clicks on it could be captured."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Forward the request, and add the header to the response."""

        async def send_with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), POLICY]}
            await send(message)

        await self.app(scope, receive, send_with_policy)


class OwnAddress:
    """Drops the headers by which a request could write another address into the page."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Forward the request without them."""
        headers = [each for each in scope.get("headers") or () if each[0] not in CLAIMED]
        await self.app({**scope, "headers": headers}, receive, send)


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
