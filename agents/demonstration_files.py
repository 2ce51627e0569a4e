"""Demonstrations in .npz files, and in folders of .npy files that are mapped into memory: plain arrays, nothing is executed."""

from __future__ import annotations

import itertools
import json
import re
import unicodedata
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from dilqr_rl.agents.archives import ArchiveError, is_too_dense, read_arrays
from dilqr_rl.agents.episode import Episode, flags
from dilqr_rl.agents.files import hidden_copies, write_folder_whole, write_whole
from dilqr_rl.agents.observations import (
    DemonstrationsError,
    as_floats,
    check_names,
    checked_array,
    fits_files,
    in_chunks,
    named_parts,
)
from dilqr_rl.agents.tensor_files import TensorFileError, parse_json
from dilqr_rl.checks import shown

__all__ = ["FileContents", "json_of", "read_contents", "write_archive", "write_folder"]

_FORMAT, _VERSION = "dilqr_rl demonstrations", 1
_HEADER = "header.json"
_LONGEST = 2**20  # bytes of a folder's header
_ALL = ("observations", "actions", "rewards", "lengths", "terminated", "truncated")
_A_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)*")  # of a file within a folder


@dataclass(frozen=True)
class FileContents:
    """What demonstrations hold, before anybody has checked whether the episodes fit each other; see there."""

    env_id: str
    env_kwargs: dict[str, Any]
    open_loop: bool
    episodes: tuple[Episode, ...]


def write_archive(path: str | Path, contents: FileContents, *, overwrite: bool) -> None:
    """Write a .npz file, whole or not at all; equal ones as equal bytes. Packed, unless that is too dense for `read_arrays`."""
    arrays: dict[str, Any] = {name: np.concatenate(parts) for name, parts in _columns(contents).items()}
    arrays["header"] = np.array(_header(contents))  # none of objects

    def write(file: Path) -> None:
        with file.open("wb") as stream:
            np.savez_compressed(stream, **arrays)
        if is_too_dense(file):
            with file.open("wb") as stream:
                np.savez(stream, **arrays)

    write_whole(path, write, overwrite=overwrite)


def write_folder(path: str | Path, contents: FileContents, *, overwrite: bool) -> None:
    """Write a folder of .npy files, whole or not at all, one episode after the other."""
    columns, header = _columns(contents), _header(contents)
    _check_names(columns)
    if len(header) > _LONGEST:  # ASCII
        raise DemonstrationsError(
            f"env_kwargs: expected no more than a header of {_LONGEST} bytes holds, got {len(header)}. "
            "Write a .npz file with save."
        )

    def write(folder: Path) -> None:
        (folder / _HEADER).write_text(header, encoding="utf-8")
        for name, parts in columns.items():
            _write_column(folder / f"{name}.npy", parts)

    write_folder_whole(path, write, overwrite=overwrite, why_not=_why_not_ours)


def read_contents(path: Path) -> FileContents:
    """What such a file or folder holds.

    Raises:
        FileNotFoundError: there is none.
        DemonstrationsError: it is something else, is damaged, or of another version.
    """
    if path.is_dir():
        return _read(path, _folder_header, _folder_arrays)
    if not path.is_file():
        left = "".join(f" {copy} is what was there when it was being overwritten: rename it." for copy in hidden_copies(path))
        raise FileNotFoundError(f"{path}: there is no such file.{left}")
    return _read(path, lambda path: str(read_arrays(path, ["header"])["header"]), read_arrays)


def _read(
    path: Path, header_of: Callable[[Path], str], arrays_of: Callable[[Path, list[str]], Mapping[str, NDArray[Any]]]
) -> FileContents:
    try:
        header = parse_json(header_of(path))
        names = _names(header)
        arrays = arrays_of(path, names)
    except (ArchiveError, TensorFileError) as error:
        raise DemonstrationsError(
            f"{path}: expected an .npz file as `dilqr expert` writes it, or a folder as save_folder writes it, got something "
            f"else or a damaged one ({error}). Pickled objects are never read; make a file with `dilqr expert`."
        ) from error
    if not isinstance(header, dict) or header.get("format") != _FORMAT or header.get("version") != _VERSION:
        came = header if not isinstance(header, dict) else {key: header.get(key) for key in ("format", "version")}
        raise DemonstrationsError(f"{path}: expected format {_FORMAT!r}, version {_VERSION}, got {came}.")
    try:
        open_loop = header.get("open_loop", False)  # older files hold closed loops, and no such key
        if not isinstance(open_loop, bool):
            raise DemonstrationsError(f"open_loop: expected true or false, got {open_loop!r}.")
        if not isinstance(header["env_id"], str):
            raise DemonstrationsError(f"env_id: expected a text, got {header['env_id']!r}.")
        return FileContents(header["env_id"], dict(header["env_kwargs"]), open_loop, _cut(arrays, "parts" in header))
    except (KeyError, TypeError, ValueError, IndexError, OverflowError, MemoryError, RecursionError) as error:
        raise DemonstrationsError(f"{path}: damaged or made by hand: {error}") from error


def _header(contents: FileContents) -> str:
    header = {"format": _FORMAT, "version": _VERSION, "env_id": contents.env_id, "env_kwargs": contents.env_kwargs}
    header["open_loop"] = contents.open_loop
    observations = contents.episodes[0].observations
    if isinstance(observations, Mapping):
        header["parts"] = list(observations)
    return json_of(header)


def json_of(header: Mapping[str, Any]) -> str:
    """A header as a text; numbers of NumPy are Python's.

    Raises:
        DemonstrationsError: JSON doesn't hold what the environment was made with.
    """
    try:
        return json.dumps(header, default=float)
    except (TypeError, ValueError, RecursionError) as error:
        raise DemonstrationsError(
            f"env_kwargs: expected what JSON holds (numbers, texts, lists, dictionaries), got {shown(header['env_kwargs'])}: "
            f"{error}. Give arrays as lists (array.tolist())."
        ) from error


def _columns(contents: FileContents) -> dict[str, list[NDArray[Any]]]:
    """The arrays of the episodes, by the names of the files."""
    episodes = contents.episodes
    named = [named_parts(episode.observations) for episode in episodes]
    if not isinstance(episodes[0].observations, Mapping):
        named = [{_ALL[0]: as_floats(parts[_ALL[0]])} for parts in named]
    for name in named[0]:
        _check_types(name, [parts[name] for parts in named])
    return {name: [parts[name] for parts in named] for name in named[0]} | {
        "actions": [as_floats(episode.actions) for episode in episodes],
        "rewards": [as_floats(episode.rewards) for episode in episodes],
        "lengths": [np.array([len(episode) for episode in episodes])],
        "terminated": [np.array([episode.terminated for episode in episodes])],
        "truncated": [np.array([episode.truncated for episode in episodes])],
    }


def _check_types(name: str, parts: list[NDArray[Any]]) -> None:
    """Whether the one type that a file has for all episodes holds each of them."""
    common = np.result_type(*{part.dtype for part in parts})
    for number, part in enumerate(parts):
        beyond = common.kind == "f" and part.dtype.kind in "iu" and part.dtype.itemsize > 4
        if beyond and not all((rows.astype(common).astype(part.dtype) == rows).all() for rows in in_chunks(part)):
            raise DemonstrationsError(
                f"episode {number}: expected {name} of one type in all episodes, got {part.dtype}, which {common} doesn't "
                "hold, beside others. Give all of them the same."
            )


def _names(header: Any) -> list[str]:
    """Of the arrays that a file of this header has."""
    if not isinstance(header, dict) or "parts" not in header:
        return list(_ALL)
    parts = header["parts"]
    if not isinstance(parts, list) or not parts or not all(isinstance(part, str) for part in parts):
        raise ArchiveError(f"its header names {shown(parts)} as parts of the observations")
    if len(set(parts)) < len(parts):
        raise ArchiveError("its header names a part twice")
    try:
        check_names(parts)
    except DemonstrationsError as error:
        raise ArchiveError(f"its header: {error}") from error
    return [*(f"observations/{part}" for part in parts), *_ALL[1:]]


def _why_not_ours(folder: Path) -> str:
    """Why a folder may not be replaced: it holds no demonstrations, or more than these; "" if it may."""
    try:
        header = parse_json(_folder_header(folder))
        ours = {_HEADER, *(f"{name}.npy" for name in _names(header))}
    except (ArchiveError, TensorFileError, OSError) as error:
        return f"it holds no demonstrations ({error})"
    if not isinstance(header, dict) or header.get("format") != _FORMAT:
        return f"it holds no demonstrations (its {_HEADER} is of another format)"
    folders = {parent for name in ours for parent in Path(name).parents}
    found = {path: path.relative_to(folder) for path in folder.rglob("*")}
    strange = sorted(
        within.as_posix()
        for path, within in found.items()
        if path.is_symlink() or not (within in folders if path.is_dir() else within.as_posix() in ours)
    )
    more = f" and {len(strange) - 5} more" if len(strange) > 5 else ""
    return f"it holds {', '.join(strange[:5])}{more} beside demonstrations" if strange else ""


def _check_names(names: Collection[str]) -> None:
    """Whether files can have these names, beside each other and where capitals count as small letters."""
    for name in names:
        if _A_NAME.fullmatch(name) is None:
            raise DemonstrationsError(
                f"observations: expected parts named with letters, digits, '.', '-' and '_', as files can be, got {name!r}. "
                "Rename it, or write a .npz file with save."
            )
    files: dict[str, str] = {}
    for name in names:
        other = files.setdefault(_plain(f"{name}.npy"), name)
        if other != name:
            raise _both(other, name)
    for name in names:
        for folder in Path(name).parents:
            if _plain(folder.as_posix()) in files:
                raise _both(files[_plain(folder.as_posix())], name)


def _plain(path: str) -> str:
    return unicodedata.normalize("NFC", path).casefold()


def _both(one: str, other: str) -> DemonstrationsError:
    return DemonstrationsError(
        f"observations: expected parts whose files can lie beside each other, also where capitals are small letters, got "
        f"{one!r} and {other!r}. Rename one, or write a .npz file with save."
    )


def _write_column(path: Path, parts: list[NDArray[Any]]) -> None:
    """A .npy file, in streams: a full disk ends a write through a memory map with a signal, not with an error."""
    path.parent.mkdir(exist_ok=True, parents=True)
    shape = (sum(len(part) for part in parts), *parts[0].shape[1:])
    dtype = np.result_type(*{part.dtype for part in parts})
    with path.open("wb") as file:
        npy.write_array_header_2_0(file, {"descr": npy.dtype_to_descr(dtype), "fortran_order": False, "shape": shape})
        for part in parts:
            for rows in in_chunks(part):
                file.write(np.ascontiguousarray(rows, dtype).tobytes())


def _folder_header(folder: Path) -> str:
    path = folder / _HEADER
    if not path.is_file() or path.stat().st_size > _LONGEST:
        raise ArchiveError(f"no {_HEADER} of a folder of demonstrations")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ArchiveError(f"{_HEADER}: no text") from error


def _folder_arrays(folder: Path, names: list[str]) -> dict[str, NDArray[Any]]:
    found = {}
    for name in names:
        path = folder / f"{name}.npy"
        if _A_NAME.fullmatch(name) is None or not path.is_file():
            raise ArchiveError(f"no {name}.npy")
        try:
            found[name] = np.load(path, mmap_mode="r", allow_pickle=False)
        except Exception as error:  # what a damaged file raises is nobody's to foresee
            raise ArchiveError(f"{name}.npy: {type(error).__name__}") from error
        if not isinstance(found[name], np.memmap):
            raise ArchiveError(f"{name}.npy: no plain array")
    return found


def _cut(arrays: Mapping[str, NDArray[Any]], named: bool) -> tuple[Episode, ...]:
    lengths = _lengths(arrays)
    count, steps = len(lengths), sum(lengths)  # Python's integers don't overflow
    seen = [name for name in arrays if name.startswith("observations")]
    expected = dict.fromkeys(seen, steps + count)
    expected |= {"actions": steps, "rewards": steps, "terminated": count, "truncated": count}
    for name, rows in expected.items():
        if arrays[name].ndim == 0 or len(arrays[name]) != rows:
            raise DemonstrationsError(
                f"{name}: expected {rows} rows for {count} episodes of {steps} steps, got shape {arrays[name].shape}."
            )
    parts = {name: _column(name, arrays[name], whole=named) for name in seen}
    actions, rewards = (_column(name, arrays[name]) for name in ("actions", "rewards"))
    terminated, truncated = (flags(name, arrays[name], count).tolist() for name in ("terminated", "truncated"))
    episodes = []
    for i, (length, end) in enumerate(zip(lengths, itertools.accumulate(lengths), strict=True)):
        around, within = slice(end - length + i, end + i + 1), slice(end - length, end)
        observed = {name.partition("/")[2]: part[around] for name, part in parts.items()} if named else parts[_ALL[0]][around]
        episodes.append(Episode(observed, actions[within], rewards[within], terminated[i], truncated[i]))
    return tuple(episodes)


def _lengths(arrays: Mapping[str, NDArray[Any]]) -> list[int]:
    """Of the episodes; all are looked at before any is kept, since a file of zeros may be larger than memory."""
    found = arrays["lengths"]
    plain = found.ndim == 1 and found.dtype.kind in "iu"
    if not plain or any((rows < 1).any() for rows in in_chunks(found)):
        raise DemonstrationsError(f"lengths: expected positive integers (episodes,), got {found.dtype} of shape {found.shape}.")
    if len(found) > len(np.atleast_1d(arrays["actions"])):
        raise DemonstrationsError(f"lengths: expected those of as many steps as there are actions, got {len(found)} episodes.")
    lengths: list[int] = found.tolist()
    return lengths


def _column(name: str, array: NDArray[Any], *, whole: bool = False) -> NDArray[Any]:
    """An array as it is, of an archive as floats; of a folder never as a copy, which might be larger than memory."""
    if fits_files(array) and (whole or array.dtype.kind == "f"):
        return array
    if isinstance(array, np.memmap):
        numbers = "numbers" if whole else "floats"
        raise DemonstrationsError(f"{name}: expected {numbers} as save_folder writes them on this machine, got {array.dtype}.")
    return checked_array(name, array, None if whole else array.ndim)
