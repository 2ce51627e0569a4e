"""Demonstrations in .npz files, and in folders of .npy files that are mapped into memory: plain arrays, nothing is executed."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from dilqr_rl.agents.archives import ArchiveError, read_arrays
from dilqr_rl.agents.episode import Episode, flags
from dilqr_rl.agents.files import hidden_copies, write_folder_whole, write_whole
from dilqr_rl.agents.observations import DemonstrationsError, in_chunks, named_parts, numbers
from dilqr_rl.agents.tensor_files import TensorFileError, parse_json

__all__ = ["Contents", "read", "write_archive", "write_folder"]

_FORMAT, _VERSION = "dilqr_rl demonstrations", 1
_HEADER = "header.json"
_LONGEST = 2**20  # bytes of a folder's header
_ALL = ("observations", "actions", "rewards", "lengths", "terminated", "truncated")
_A_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)*")  # of a file within a folder


@dataclass(frozen=True)
class Contents:
    """What demonstrations hold, before anybody has checked whether the episodes fit each other; see there."""

    env_id: str
    env_kwargs: dict[str, Any]
    open_loop: bool
    episodes: tuple[Episode, ...]


def write_archive(path: str | Path, contents: Contents, *, overwrite: bool) -> None:
    """Write a .npz file, whole or not at all; equal ones as equal bytes. Frames are left as they are, numbers are packed."""
    arrays: dict[str, Any] = {name: np.concatenate(parts) for name, parts in _columns(contents).items()}
    save = np.savez if any(part.dtype.kind != "f" for name, part in arrays.items() if name not in _ALL) else np.savez_compressed

    def write(file: Path) -> None:
        with file.open("wb") as stream:
            save(stream, header=np.array(_header(contents)), **arrays)  # none of objects

    write_whole(path, write, overwrite=overwrite)


def write_folder(path: str | Path, contents: Contents, *, overwrite: bool) -> None:
    """Write a folder of .npy files, whole or not at all, one episode after the other."""
    columns = _columns(contents)
    for name in columns:
        _check_name(name)

    def write(folder: Path) -> None:
        (folder / _HEADER).write_text(_header(contents), encoding="utf-8")
        for name, parts in columns.items():
            _write_column(folder / f"{name}.npy", parts)

    write_folder_whole(path, write, overwrite=overwrite, why_not=_why_not_ours)


def read(path: Path) -> Contents:
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
) -> Contents:
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
        return Contents(header["env_id"], dict(header["env_kwargs"]), open_loop, _cut(arrays, "parts" in header))
    except (KeyError, TypeError, ValueError, IndexError, OverflowError, MemoryError, RecursionError) as error:
        raise DemonstrationsError(f"{path}: damaged or made by hand: {error}") from error


def _header(contents: Contents) -> str:
    header = {"format": _FORMAT, "version": _VERSION, "env_id": contents.env_id, "env_kwargs": contents.env_kwargs}
    header["open_loop"] = contents.open_loop
    observations = contents.episodes[0].observations
    if isinstance(observations, dict):
        header["parts"] = list(observations)
    return json.dumps(header, default=float)


def _columns(contents: Contents) -> dict[str, list[NDArray[Any]]]:
    """The arrays of the episodes, by the names of the files."""
    episodes = contents.episodes
    named = [named_parts(episode.observations) for episode in episodes]
    return {name: [parts[name] for parts in named] for name in named[0]} | {
        "actions": [episode.actions for episode in episodes],
        "rewards": [episode.rewards for episode in episodes],
        "lengths": [np.array([len(episode) for episode in episodes])],
        "terminated": [np.array([episode.terminated for episode in episodes])],
        "truncated": [np.array([episode.truncated for episode in episodes])],
    }


def _names(header: Any) -> list[str]:
    """Of the arrays that a file of this header has."""
    if not isinstance(header, dict) or "parts" not in header:
        return list(_ALL)
    parts = header["parts"]
    if not isinstance(parts, list) or not parts or not all(isinstance(part, str) for part in parts):
        raise ArchiveError(f"its header names {parts!r} as parts of the observations")
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


def _check_name(name: str) -> None:
    if _A_NAME.fullmatch(name) is None:
        raise DemonstrationsError(
            f"observations: expected parts named with letters, digits, '.', '-' and '_', as files can be, got {name!r}. Rename "
            "it, or write a .npz file with save."
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
    lengths = np.array(arrays["lengths"])
    if lengths.ndim != 1 or lengths.dtype.kind not in "iu" or (lengths < 1).any():
        raise DemonstrationsError(f"lengths: expected positive integers (episodes,), got {lengths!r}.")
    count, steps = len(lengths), sum(lengths.tolist())  # Python's integers don't overflow
    seen = [name for name in arrays if name.startswith("observations")]
    expected = dict.fromkeys(seen, steps + count)
    expected |= {"actions": steps, "rewards": steps, "terminated": count, "truncated": count}
    for name, rows in expected.items():
        if arrays[name].ndim == 0 or len(arrays[name]) != rows:
            raise DemonstrationsError(
                f"{name}: expected {rows} rows for {count} episodes of {steps} steps, got shape {arrays[name].shape}."
            )
    parts = {name: numbers(name, arrays[name], None if named else arrays[name].ndim) for name in seen}
    actions, rewards = (numbers(name, arrays[name], arrays[name].ndim) for name in ("actions", "rewards"))
    terminated, truncated = (flags(name, arrays[name], count).tolist() for name in ("terminated", "truncated"))
    episodes = []
    for i, (length, end) in enumerate(zip(lengths.tolist(), itertools.accumulate(lengths.tolist()), strict=True)):
        around, within = slice(end - length + i, end + i + 1), slice(end - length, end)
        observed = {name.partition("/")[2]: part[around] for name, part in parts.items()} if named else parts[_ALL[0]][around]
        episodes.append(Episode(observed, actions[within], rewards[within], terminated[i], truncated[i]))
    return tuple(episodes)
