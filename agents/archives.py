"""Reading .npz files that may be anything: no more is unpacked than an honest file would hold, and nothing is executed."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from numpy.lib import format as npy
from numpy.typing import NDArray

__all__ = ["ArchiveError", "is_too_dense", "read_arrays"]

_SMALL = 64 * 2**20  # bytes that any file may unpack to
_DENSEST = 100  # times its own size that a larger one may: numbers that somebody measured hardly shrink
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # others allocate what the file says before they read it


class ArchiveError(ValueError):
    """A file is no archive of plain arrays."""


def read_arrays(path: Path, names: Iterable[str]) -> dict[str, NDArray[Any]]:
    """The arrays of these names.

    Raises:
        ArchiveError: one is missing or isn't a plain array, the file is damaged, or so small a file would fill the memory.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.getinfo(f"{name}.npy") for name in names}
            _check_sizes(path, members.values())
            return {name: _read(archive, member) for name, member in members.items()}
    except ArchiveError:
        raise
    except Exception as error:  # what a damaged archive raises is nobody's to foresee
        what = error if isinstance(error, KeyError) else type(error).__name__  # NumPy's own words recommend allow_pickle
        raise ArchiveError(f"{what}") from error


def is_too_dense(path: Path) -> bool:
    """Whether `read_arrays` would refuse an archive since it unpacks to so much more than it is."""
    with zipfile.ZipFile(path) as archive:
        try:
            _check_sizes(path, archive.infolist())
        except ArchiveError:
            return True
    return False


def _check_sizes(path: Path, members: Iterable[zipfile.ZipInfo]) -> None:
    asked, most = sum(member.file_size for member in members), max(_SMALL, _DENSEST * path.stat().st_size)
    if asked > most:
        raise ArchiveError(f"its {path.stat().st_size} bytes would become {asked}, and nobody's measurements shrink so much")


def _read(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> NDArray[Any]:
    if member.compress_type not in _METHODS:
        raise ArchiveError(f"{member.filename}: packed by method {member.compress_type}")
    with archive.open(member) as stream:
        read_header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[npy.read_magic(stream)]
        shape, _, dtype = read_header(stream)
    if dtype.hasobject or dtype.itemsize * math.prod(shape) > member.file_size:
        raise ArchiveError(f"{member.filename}: no plain array, or one of {shape} in {member.file_size} bytes")
    with archive.open(member) as stream:
        found: NDArray[Any] = npy.read_array(stream, allow_pickle=False)
    return found
