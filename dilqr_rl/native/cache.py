"""Generated modules and their machine code, kept in the user's cache folder.

An entry is a folder, named by a hash of everything that its content depends on, with the module's source, what numba made of
it, and a manifest with the checksum of each file. Entries are never changed: they are built elsewhere and renamed into place,
and whoever comes second keeps what is there. A module is compiled in a private folder, and imported from a private copy whose
checksums have been verified, so that an entry may vanish, be damaged or be read-only at any moment.

What is read is executed. So nothing is read that anybody but this user and root may have written: neither from a root folder of
somebody else's, nor an entry, nor a file.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import re
import shutil
import stat
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType

import llvmlite
import numba
from numba.core.registry import cpu_target

from dilqr_rl.locks import ONE_AT_A_TIME

__all__ = ["cache_folder", "load_module"]

_FORMAT = 1  # of an entry
_MANIFEST = "manifest.json"
_DAYS_UNUSED = 60  # after which an entry is dropped
_DAYS_UNFINISHED = 2  # the same for what an interrupted process has left
_HIDDEN = ".unfinished-"
_ENTRY = re.compile("[0-9a-f]{32}")
_SECONDS_PER_DAY = 86400.0
_STAMP = (1_000_000_000, 1_000_000_000)  # times of the source: some versions of numba go by them, so they must survive a copy
_MANY = 20  # modules of one label in a process, after which it is said that none is ever freed
_MEGABYTES = 4  # of memory that one takes, measured
# A link is never followed, and what is no file doesn't block. Windows has neither, nor other users' files in a user's folder.
_PLAINLY = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)

_log = logging.getLogger("dilqr_rl")
_modules: dict[str, ModuleType] = {}
_made: Counter[str] = Counter()  # modules by label
_refused: list[str] = []  # why nothing could be kept, once that has been said

Files = dict[str, bytes]  # by their path in the entry


def load_module(name: str, source: str, label: str) -> ModuleType:
    """Import generated source whose numba functions (explicit signatures, cache=True) compile at import, or load it compiled.

    Args:
        name: a Python identifier, for the module's file.
        source: Python source.
        label: what to call it in the line that tells a person that something compiles.

    Returns:
        The module; always the same one in one process.
    """
    key = _key(name, source)
    with ONE_AT_A_TIME:
        if key not in _modules:
            _modules[key] = _load(name, source, label, key)
            _count(label)
        return _modules[key]


def _count(label: str) -> None:
    """Say once that machine code is never freed, where much of it comes together."""
    _made[label] += 1
    if _made[label] == _MANY:
        _log.warning(
            "%d versions of %s have been compiled in this process; their machine code, some %d MB each, is never freed. Make "
            "one planner and pass what changes as tensors (parameters, buffers, params=), which compiles nothing.",
            _MANY,
            label,
            _MEGABYTES,
        )


def cache_folder() -> Path:
    """Where the entries are: the environment variable DILQR_CACHE_DIR, or the platform's folder for a user's caches.

    Raises:
        OSError: there is no such folder, since the user has no home.
    """
    chosen = os.environ.get("DILQR_CACHE_DIR")
    if chosen:
        return Path(chosen).absolute()
    variable, parts = {"win32": ("LOCALAPPDATA", ("AppData", "Local")), "darwin": ("", ("Library", "Caches"))}.get(
        sys.platform, ("XDG_CACHE_HOME", (".cache",))
    )
    base = os.environ.get(variable, "")
    if os.path.isabs(base):
        return Path(base, "dilqr_rl")
    try:
        return Path.home().joinpath(*parts, "dilqr_rl")
    except RuntimeError as error:
        raise OSError(str(error)) from error


def _key(name: str, source: str) -> str:
    versions = (_FORMAT, platform.python_implementation(), sys.version, numba.__version__, llvmlite.__version__)
    machine = cpu_target.target_context.codegen().magic_tuple()
    settings = [getattr(numba.config, name, None) for name in ("OPT", "LOOP_VECTORIZE", "SLP_VECTORIZE", "BOUNDSCHECK")]
    content = json.dumps([*map(str, versions), *map(str, machine), *map(str, settings), name, source])
    return hashlib.sha256(content.encode()).hexdigest()[:32]


def _load(name: str, source: str, label: str, key: str) -> ModuleType:
    """The module from its entry, or compiled."""
    try:
        root = cache_folder()
        files = _read_entry(root, key)
    except OSError as error:
        return _compile_privately(name, source, label, key, error)
    if files.get(f"{name}.py") == source.encode():
        try:
            with _private_folder() as folder:
                return _import_from(folder, name, key, files)
        except Exception as error:  # numba unpickles what it has kept, which can fail in any way
            _log.warning("the cache entry %s can't be loaded and is made anew (%s)", root / key, error)
            with suppress(OSError):
                _discard(root / key)
    try:
        return _compile_and_keep(name, source, label, key, root)
    except OSError as error:
        return _compile_privately(name, source, label, key, error)


def _compile_and_keep(name: str, source: str, label: str, key: str, root: Path) -> ModuleType:
    """Import the module afresh and make an entry of it; raises an OSError where that isn't possible."""
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    _refuse_what_others_may_write(root)
    unfinished = _hidden(root)
    unfinished.mkdir(mode=0o700)
    try:
        with _private_folder() as folder:
            _log.warning("compiling %s to native code, some seconds, once; kept in %s", label, root)
            module = _import_from(folder, name, key, {f"{name}.py": source.encode()})
            with suppress(OSError):  # then the next process compiles again
                _write(unfinished, _files(folder, Path.read_bytes))
                _publish(unfinished, root / key)
                _drop_old_entries(root)
        return module
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _compile_privately(name: str, source: str, label: str, key: str, reason: OSError) -> ModuleType:
    """Import the module afresh, for this process only."""
    if _refused:
        _log.warning("compiling %s to native code, some seconds, for this process only", label)
    else:
        _refused.append(str(reason))
        _log.warning(
            "compiling %s to native code, some seconds, for this process only: the cache folder can't be used (%s). The "
            "environment variable DILQR_CACHE_DIR names another one.",
            label,
            reason,
        )
    with _private_folder() as folder:
        return _import_from(folder, name, key, {f"{name}.py": source.encode()})


@contextmanager
def _private_folder() -> Iterator[Path]:
    """A folder for this process alone, removed afterwards, where nobody else can put another in its place."""
    place = Path(tempfile.gettempdir())
    try:
        _refuse_what_others_may_write(place)
    except PermissionError:
        place = cache_folder()
        _refuse_what_others_may_write(place)
    with tempfile.TemporaryDirectory(prefix=f"{_HIDDEN}dilqr_rl-", dir=place, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def _import_from(folder: Path, name: str, key: str, files: Files) -> ModuleType:
    """Write the files to the folder and import the module there, compiling what they don't hold in machine code."""
    _write(folder, files)
    file = folder / f"{name}.py"
    os.utime(file, _STAMP)
    module = ModuleType(f"_dilqr_rl_{name}_{key[:16]}")
    module.__file__ = str(file)
    sys.modules[module.__name__] = module  # numba looks the functions' types up there
    try:
        with _numba_cache_beside_the_source():
            exec(compile(files[f"{name}.py"], str(file), "exec", dont_inherit=True), vars(module))
    except BaseException:
        del sys.modules[module.__name__]
        raise
    return module


@contextmanager
def _numba_cache_beside_the_source() -> Iterator[None]:
    """Numba's own settings of where to cache, put aside."""
    names = [name for name in ("CACHE_DIR", "CACHE_LOCATOR_CLASSES") if hasattr(numba.config, name)]
    before = {name: getattr(numba.config, name) for name in names}
    for name in names:
        setattr(numba.config, name, "")
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(numba.config, name, value)


def _write(folder: Path, files: Files) -> None:
    for path, content in files.items():
        file = folder / path
        file.parent.mkdir(exist_ok=True, mode=0o700)
        file.write_bytes(content)
        file.chmod(0o600)  # whatever the umask: a file that others may write isn't read


def _is_ours(state: os.stat_result) -> bool:
    """Whether nobody but this user and root can have written what has this state."""
    return not hasattr(os, "getuid") or (state.st_uid in (os.getuid(), 0) and not state.st_mode & 0o022)


def _refuse_what_others_may_write(folder: Path) -> None:
    """Raise a PermissionError for a folder in which others may put something in the place of ours."""
    if not hasattr(os, "getuid"):
        return
    state = folder.stat()
    if state.st_uid not in (os.getuid(), 0):
        raise PermissionError(f"{folder} belongs to another user, {state.st_uid}, whose code would be run")
    if state.st_mode & 0o022 and not state.st_mode & stat.S_ISVTX:
        raise PermissionError(f"others may write to {folder}, and so have their code run; chmod go-w forbids it")


def _read_entry(root: Path, key: str) -> Files:
    """The files of an entry; none where there is no entry, or a damaged one, or one that others may write to.

    Raises:
        OSError: others may write to the root itself.
    """
    entry = root / key
    if not os.path.lexists(root):
        return {}
    _refuse_what_others_may_write(root)
    files = _sound_files(entry)
    if files:
        with suppress(OSError):
            os.utime(entry / _MANIFEST)  # in use
    elif os.path.lexists(entry):
        _log.warning("the cache entry %s is damaged, or others may write to it, and is made anew", entry)
    return files


def _sound_files(entry: Path) -> Files:
    """The files of an entry if all of them are as its manifest says, and there are no others; else none."""
    try:
        if not _is_ours(entry.lstat()):
            return {}
        manifest = json.loads(_read(entry / _MANIFEST))
        files = _files(entry, _read)
    except (OSError, ValueError, RecursionError):
        return {}
    return files if manifest == _manifest(files) else {}


def _files(folder: Path, read: Callable[[Path], bytes]) -> Files:
    """The files in a folder and below, apart from its manifest."""
    paths = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if not path.is_dir()}
    return {name: read(path) for name, path in sorted(paths.items()) if name != _MANIFEST}


def _read(path: Path) -> bytes:
    """What is in a file, of which this very file, once open, tells that it is ours."""
    with open(os.open(path, _PLAINLY), "rb") as file:
        state = os.fstat(file.fileno())
        if not stat.S_ISREG(state.st_mode) or not _is_ours(state):
            raise PermissionError(f"{path} is no file, or others may write to it")
        return file.read()


def _manifest(files: Files) -> dict[str, str]:
    return {path: hashlib.sha256(content).hexdigest() for path, content in files.items()}


def _publish(unfinished: Path, entry: Path) -> None:
    """Make an entry of a finished folder. One that is there already stays if it is sound."""
    _write(unfinished, {_MANIFEST: json.dumps(_manifest(_files(unfinished, _read))).encode()})
    if os.path.lexists(entry) and not _sound_files(entry):
        _discard(entry)
    with suppress(OSError):  # another process was faster
        unfinished.rename(entry)


def _discard(entry: Path) -> None:
    """Remove an entry: out of the way at once, whatever then becomes of its files."""
    aside = _hidden(entry.parent)
    entry.rename(aside)
    if aside.is_dir():
        shutil.rmtree(aside, ignore_errors=True)
    else:
        aside.unlink()


def _hidden(root: Path) -> Path:
    """A new name that is no entry's."""
    return root / (_HIDDEN + uuid.uuid4().hex)


def _drop_old_entries(root: Path) -> None:
    """Remove entries that nobody has used for long, and what interrupted processes have left. Other folders stay."""
    now = time.time()
    for folder in root.iterdir():
        with suppress(OSError):
            if folder.name.startswith(_HIDDEN):
                if now - folder.stat().st_mtime > _DAYS_UNFINISHED * _SECONDS_PER_DAY:
                    shutil.rmtree(folder, ignore_errors=True)
            elif _ENTRY.fullmatch(folder.name) and now - (folder / _MANIFEST).stat().st_mtime > _DAYS_UNUSED * _SECONDS_PER_DAY:
                _discard(folder)
