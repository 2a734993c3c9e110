"""Command-line output: results, notes, tables, progress."""

import os
import shlex
import shutil
import sys
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import rich.progress as bars
from rich.console import Console
from rich.markup import escape
from rich.table import Table

LINES = 10  # of progress without a terminal

console = Console(emoji=False)
CONTROLS = {"Cc", "Cs", "Zl", "Zp"}
"""Unicode categories: control characters, lone surrogates, line and paragraph separators."""
DIRECTIONS = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"  # reorder the text that follows


def program() -> str:
    """The command that starts this program, for the commands it suggests."""
    called, found = Path(sys.argv[0]), shutil.which("biflow")
    if called.stem == "biflow" and called.is_file():  # the installed command, perhaps not on the path
        return "biflow" if found and called.samefile(found) else quote(called)
    if not called.exists() or (found and Path(found).parent == Path(sys.executable).parent):
        return "biflow"
    return f"{quote(sys.executable)} -m biflow"


def quote(path: str | Path) -> str:
    """A path as it is written in a shell's command.

    >>> quote("runs/my model")
    "'runs/my model'"
    """
    return shlex.quote(str(path))


def tell(message: str) -> None:
    """Print a result to stdout, verbatim but for control characters."""
    console.print(printable(message, keep="\n"), markup=False, highlight=False, soft_wrap=True)


def say(message: str) -> None:
    """Print a note to stderr, verbatim but for control characters."""
    stderr = Console(stderr=True, emoji=False)
    stderr.print(printable(message, keep="\n"), markup=False, highlight=False, soft_wrap=True)


def say_once(message: str) -> None:
    """Print a note to stderr in rank 0 only."""
    if os.environ.get("RANK", "0") == "0":
        say(message)


def printable(text: str, *, keep: str = "") -> str:
    """Escape characters that steer a terminal, reorder the text or are none, but those to keep.

    >>> printable("caf\\u00e9 \\u2615") == "caf\\u00e9 \\u2615", printable("a\\n\\udcff\\x1b[2J")
    (True, 'a\\\\n\\\\udcff\\\\x1b[2J')
    """
    if text.isprintable():
        return text
    return "".join(ascii(each)[1:-1] if _is_control(each) and each not in keep else each for each in text)


def _is_control(character: str) -> bool:
    return unicodedata.category(character) in CONTROLS or character in DIRECTIONS


def some(texts: Sequence[str], most: int = 5) -> str:
    """The first texts, and the number of others.

    >>> some(["a", "b", "c"], most=2)
    'a, b and 1 more'
    """
    return ", ".join(texts[:most]) + (f" and {len(texts) - most} more" if len(texts) > most else "")


def counted(count: int, noun: str) -> str:
    """Format a count with its noun in singular or plural.

    >>> counted(1, "image"), counted(1200, "image"), counted(2, "class")
    ('1 image', '1,200 images', '2 classes')
    """
    plural = "" if count == 1 else "es" if noun.endswith("s") else "s"
    return f"{count:,} {noun}{plural}"


def table(title: str, rows: list[list[str]], *, numbers: bool = True) -> Table:
    """A table whose first row is the header; `numbers` right-aligns all columns but the first and never wraps them."""
    shown = Table(title=title, title_justify="left")
    shown.add_column(rows[0][0], overflow="fold")
    options: Any = {"justify": "right", "no_wrap": True} if numbers else {"overflow": "fold"}
    for heading in rows[0][1:]:
        shown.add_column(heading.replace(", ", ",\n") if numbers else heading, **options)
    for row in rows[1:]:
        shown.add_row(*(escape(printable(cell, keep="\n")) for cell in row))
    return shown


@contextmanager
def counting(console: Console, title: str, total: int, *, shown: bool = True) -> Iterator[Callable[[int], None]]:
    """Progress of `total` items: yields advance(n). A bar in a terminal, at most ten lines elsewhere."""
    done = lines = 0
    with bars.Progress(console=console, disable=not (shown and total and console.is_terminal)) as progress:
        task = progress.add_task(title, total=total)

        def advance(count: int) -> None:
            nonlocal done, lines
            done += count
            progress.update(task, completed=done)
            due = LINES * done // max(1, total)
            if shown and not console.is_terminal and due > lines:
                console.print(f"{title}: {done:,} of {total:,}", markup=False, highlight=False)
                lines = due

        yield advance
