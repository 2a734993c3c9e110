"""What visitors leave behind: uploads on the disk, and rejected values in the log."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from typing import Any, TextIO

MOST_LETTERS = 500  # of one write to stderr
DELETE = "import shutil, sys; sys.stdin.read(); shutil.rmtree(sys.argv[1], ignore_errors=True)"


@contextmanager
def upload_folder() -> Iterator[str]:
    """A temporary folder; deleted when the context exits, and also if this process is killed.

    A small process of its own deletes it, as soon as the pipe from this one is closed.
    """
    folder = tempfile.mkdtemp(prefix="biflow-app-")
    command = [sys.executable, "-IS", "-c", DELETE, folder]
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True):
        yield folder


@contextmanager
def short_errors() -> Iterator[None]:
    """Shorten what is written to stderr: Gradio's traceback of a rejected value holds the whole value."""
    with redirect_stderr(Shortened(sys.stderr)):
        yield


class Shortened:
    """A text stream that cuts every long write."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        """Write the text, or its beginning."""
        cut = f"{text[:MOST_LETTERS]}... ({len(text):,} characters)\n" if len(text) > MOST_LETTERS else text
        self.stream.write(cut)
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)
