"""How the command line speaks: results, notes, tables."""

import os
import shutil
import sys
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

console = Console()


def program() -> str:
    """How this program was called, so that what it proposes to type works."""
    return "biflow" if shutil.which("biflow") or not Path(sys.argv[0]).exists() else sys.argv[0]


def tell(message: str) -> None:
    """Print a result, as it is."""
    console.print(message, markup=False, highlight=False, soft_wrap=True)


def say(message: str) -> None:
    """Print a note beside the results, to the standard error."""
    Console(stderr=True).print(message, markup=False, highlight=False, soft_wrap=True)


def say_once(message: str) -> None:
    """Print a note that all processes of a launcher could print."""
    if os.environ.get("RANK", "0") == "0":
        say(message)


def table(title: str, rows: list[list[str]]) -> Table:
    """A table with its head in the first row; all columns but the first are numbers, which are never cut."""
    shown = Table(title=title, title_justify="left")
    shown.add_column(rows[0][0], overflow="fold")
    for heading in rows[0][1:]:
        shown.add_column(heading.replace(", ", ",\n"), justify="right", no_wrap=True)
    for row in rows[1:]:
        shown.add_row(*map(escape, row))
    return shown
