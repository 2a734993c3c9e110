"""The command line's `app`."""

from typing import Annotated

import typer

from biflow.cli.arguments import Device, ModelFolder, open_pipeline
from biflow.console import say, tell


def app(
    model: ModelFolder,
    host: Annotated[str, typer.Option(help="Address to listen at; the default is this machine alone.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen at.")] = 7860,
    max_images: Annotated[int, typer.Option(min=1, max=1000, help="Most images at once, drawn or uploaded.")] = 100,
    device: Device = None,
) -> None:
    """A page in the browser: sample, edit, classify, rank, compare."""
    from biflow.app.backend import Backend
    from biflow.app.controls import import_gradio
    from biflow.app.server import LOCAL, serve

    import_gradio()

    backend = Backend(open_pipeline(model, device), max_images)
    with serve(backend, host=host, port=port) as address:
        if host not in LOCAL:
            say(f"Note: whoever can reach {host} can use this page; it asks for no password.")
        tell(f"Open {address} in a browser; Ctrl-C ends it.")
        wait()
    tell("Ended.")


def wait() -> None:
    """Return when a person presses Ctrl-C, or at SIGTERM."""
    import signal
    from threading import Event

    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        Event().wait()
    except KeyboardInterrupt:
        return
    finally:
        signal.signal(signal.SIGTERM, before)
