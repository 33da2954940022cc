"""Built-in corpora: Python source that every machine already has.

`python-stdlib` is the standard library of the running interpreter, `python-env` the packages
installed beside it. Neither is the same text on another Python or another set of packages, which
is why every result carries the fingerprint of what was read.
"""

from __future__ import annotations

import hashlib
import os
import sysconfig
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from parcae_core.errors import UserError

# name -> key of sysconfig.get_paths()
BUILTIN_ROOTS = {"python-stdlib": "stdlib", "python-env": "purelib"}

# Tests, generated tables, data disguised as code, and packages that not every build ships.
SKIPPED_FOLDERS = frozenset([
    "site-packages", "dist-packages", "__pycache__", "test", "tests", "idlelib", "tkinter", "turtledemo",
    "lib2to3", "distutils", "ensurepip", "encodings", "pydoc_data", "msilib", "venv", "curses", "dbm",
    "lib-dynload",
])  # fmt: skip
SKIPPED_FILES = frozenset({"turtle.py", "entities.py"})
MIN_FILE_BYTES = 512
MAX_FILE_BYTES = 400_000
MAX_DIGIT_SHARE = 0.14  # above it a file is a table of numbers
MIN_REPEAT_CHARS = 80  # shorter paragraphs repeat in honest code


def python_documents(name: str, skipped: Counter[str]) -> list[tuple[str, str]]:
    """(POSIX path, text) of every document of a built-in corpus, ordered by sha256 of the path.

    Args:
        name: a key of `BUILTIN_ROOTS`.
        skipped: receives reason -> number of files left out.

    Raises:
        UserError: if the interpreter ships no source files.
    """
    root = Path(sysconfig.get_paths()[BUILTIN_ROOTS[name]])
    seen: set[str] = set()
    documents = []
    # Sorted by path here, so that which copy of a repeated paragraph stays does not depend on
    # the order in which the file system lists a folder.
    for path in sorted(_python_files(root)):
        text = _clean_text((root / path).read_bytes(), skipped)
        if text is None:
            continue
        text = _without_repeats(text, seen)
        if text.strip():
            documents.append((path, text))
        else:
            skipped["nothing but repeated paragraphs"] += 1
    if not documents:
        raise UserError(
            f"corpus {name!r}: looked for *.py source files in {root} and found none to keep; "
            "this Python ships without its sources. Use another Python, or give a folder of text"
        )
    return sorted(documents, key=lambda d: hashlib.sha256(d[0].encode()).digest())


def _python_files(root: Path) -> Iterator[str]:
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = [
            s for s in subfolders if s not in SKIPPED_FOLDERS and not s.startswith("config-")
        ]
        relative = Path(folder).relative_to(root)
        for file in files:
            if (
                file.endswith(".py")
                and file not in SKIPPED_FILES
                and not file.startswith("_sysconfigdata")
            ):
                yield (relative / file).as_posix()


def _clean_text(data: bytes, skipped: Counter[str]) -> str | None:
    """Normalised text of one file, or None with the reason counted."""
    n_digits = len(data) - len(data.translate(None, b"0123456789"))
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        skipped["not UTF-8"] += 1
        return None
    if not MIN_FILE_BYTES <= len(data) <= MAX_FILE_BYTES:
        skipped["too small or too large"] += 1
    elif b"\0" in data:
        skipped["binary (NUL)"] += 1
    elif n_digits >= MAX_DIGIT_SHARE * len(data):
        skipped["mostly digits"] += 1
    else:
        lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
        return "\n".join(map(str.rstrip, lines))
    return None


def _without_repeats(text: str, seen: set[str]) -> str:
    """Drop paragraphs seen before in the corpus, compared with whitespace collapsed."""
    kept = []
    for paragraph in text.split("\n\n"):
        if len(paragraph) >= MIN_REPEAT_CHARS:
            collapsed = " ".join(paragraph.split())
            if len(collapsed) >= MIN_REPEAT_CHARS:
                if collapsed in seen:
                    continue
                seen.add(collapsed)
        kept.append(paragraph)
    return "\n\n".join(kept)
