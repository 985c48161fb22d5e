"""The lines of a file somebody gave us, with their numbers, in bounded memory."""

from __future__ import annotations

import gzip
import io
import os
import zlib
from collections.abc import Iterator
from pathlib import Path

from irlhf.errors import DataError, Problem

LINE_CAP = 1 << 20  # bytes of one line; a longer one is refused, not read into memory
MOST_PROBLEMS = 10_000  # collected from one file; one with more is something else altogether
_BLOCK = 1 << 18  # small: parsed rows are many objects, and the garbage collector walks all that live
_BOM = b"\xef\xbb\xbf"


def blocks(path: str | os.PathLike[str]) -> Iterator[tuple[int, list[bytes | None]]]:
    """(number of the first line, lines without their newline), block after block; a line over the cap is None.

    Names ending in ``.gz`` are decompressed on the way. A byte order mark is dropped.

    Raises:
        DataError: no such file, not a file, no permission, damaged compression.
    """
    name = os.fspath(path)
    number, rest, too_long = 1, b"", False
    try:
        with _open(path) as file:
            while block := file.read(_BLOCK):
                if number == 1 and not rest and not too_long:
                    block = block.removeprefix(_BOM)
                *whole, rest = (rest + block).split(b"\n")
                lines = [_capped(line) for line in whole]
                if lines:
                    if too_long:
                        lines[0] = None
                    too_long = False
                    yield number, lines
                    number += len(lines)
                if len(rest) > LINE_CAP:  # keep nothing of a line that is refused anyway
                    too_long, rest = True, b""
        if rest or too_long:
            yield number, [None if too_long else rest]
    except FileNotFoundError:
        raise DataError(Problem(name, None, None, "there is no such file; check the path")) from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        reason = f"the compressed data is damaged from about here on ({error}); compress the file again"
        raise DataError(Problem(name, number, None, reason)) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(Problem(name, None, None, f"the file cannot be read: {reason}")) from None


def _open(path: str | os.PathLike[str]) -> io.BufferedIOBase:
    return gzip.open(path, "rb") if Path(path).suffix == ".gz" else open(path, "rb")


def _capped(line: bytes) -> bytes | None:
    return line if len(line) <= LINE_CAP else None


def decode(line: bytes | None) -> str:
    """One line as text, without a carriage return at its end.

    Raises:
        ValueError: the line is over the cap, is not UTF-8 or holds a NUL; the message says what to do.
    """
    if line is None:
        raise ValueError(f"the line is longer than {LINE_CAP:,} bytes; split it, or leave out what is not feedback")
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = line[error.start]
        reason = f"byte 0x{byte:02x} in position {error.start + 1} is not UTF-8; save the file as UTF-8"
        raise ValueError(reason) from None
    if "\0" in text:
        raise ValueError("the line holds a NUL character; save the file as plain UTF-8 text")
    return text.removesuffix("\r")
