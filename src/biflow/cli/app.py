"""The command line's `app`."""

from typing import Annotated

import typer

from biflow.cli.arguments import Device, ModelFolder, open_pipeline
from biflow.console import say, tell


def app(
    model: ModelFolder,
    host: Annotated[str, typer.Option(help="Address to listen on; by default this machine only.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 7860,
    max_images: Annotated[int, typer.Option(min=1, max=1000, help="Largest number of images at once.")] = 100,
    device: Device = None,
) -> None:
    """Open a web page: sample, edit, classify, rank, compare."""
    from biflow.app.backend import Backend
    from biflow.app.controls import import_gradio
    from biflow.app.middleware import LOCAL
    from biflow.app.server import serve

    import_gradio()

    backend = Backend(open_pipeline(model, device), max_images)
    with serve(backend, host=host, port=port) as address:
        if host not in LOCAL:
            say(f"Note: anyone who can reach {host} can use this page; it has no password.")
        tell(f"Open {address} in a browser; press Ctrl-C to stop.")
        wait()
    tell("Stopped.")


def wait() -> None:
    """Return when a person presses Ctrl-C, or at SIGTERM."""
    import signal
    from contextlib import suppress
    from threading import Event

    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with suppress(KeyboardInterrupt):
            Event().wait()
    finally:
        signal.signal(signal.SIGTERM, before)
