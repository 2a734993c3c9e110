"""Which image files of a folder are copies of others, byte for byte."""

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from functools import partial
from hashlib import blake2b, file_digest
from pathlib import Path

from biflow.data.scan import Facts, in_chunks, write_scan

DIGEST_BYTES = 16


def find_copies(root: Path, readable: Mapping[str, Facts]) -> list[list[str]]:
    """Groups of equal files, each with the shortest name first.

    Only files that agree in length, size and kind are read, and their digests are recorded with the scan.
    """
    wanted = [name for group in _groups(readable, _outline) for name in group if not readable[name].digest]
    digests: dict[str, str] = {}
    for part in in_chunks(wanted, partial(_digests, root), "comparing images"):
        digests.update(part)
    known = {name: facts._replace(digest=digests.get(name, facts.digest)) for name, facts in readable.items()}
    if digests:
        write_scan(root, known)
    return [sorted(group, key=_by_length) for group in _groups(known, lambda facts: facts.digest)]


def originals(copies: Sequence[Sequence[str]]) -> dict[str, str]:
    """Each name that has copies -> the first name of its group.

    >>> originals([["a.png", "a (1).png"]])
    {'a.png': 'a.png', 'a (1).png': 'a.png'}
    """
    return {name: group[0] for group in copies for name in group}


def count_shared(copies: Sequence[Sequence[str]], test: Collection[str]) -> int:
    """Number of test images that are equal to a training image.

    >>> count_shared([["a", "b"], ["c", "d"]], {"b", "c", "d", "e"})
    1
    """
    held = [sum(name in test for name in group) for group in copies]
    return sum(count for group, count in zip(copies, held, strict=True) if count < len(group))


def _groups(readable: Mapping[str, Facts], key_of: Callable[[Facts], object]) -> list[list[str]]:
    """Names with the same key that is not empty, two or more in a group."""
    groups: dict[object, list[str]] = defaultdict(list)
    for name, facts in readable.items():
        if key := key_of(facts):
            groups[key].append(name)
    return [group for group in groups.values() if len(group) > 1]


def _outline(facts: Facts) -> object:
    return facts.length, facts.width, facts.height, facts.mode, facts.format


def _by_length(name: str) -> tuple[int, str]:
    return len(name), name


def _digests(root: Path, names: Sequence[str]) -> dict[str, str]:
    """Digests of the files that can still be read."""
    found = {}
    for name in names:
        with suppress(OSError), (root / name).open("rb") as file:
            found[name] = file_digest(file, partial(blake2b, digest_size=DIGEST_BYTES)).hexdigest()
    return found
