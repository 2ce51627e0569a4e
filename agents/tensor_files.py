"""Tensors with a few texts beside them, as safetensors: equal ones give equal bytes, and reading one trusts nothing in it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from dilqr_rl.agents.files import write_whole

__all__ = ["TensorFileError", "load_exactly", "parse_json", "read_tensors", "write_tensors"]

_LENGTH = 8  # bytes that hold the header's length, to which it is padded, too
_METADATA = "__metadata__"
_FLOATS = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
_WHOLE = {torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}


class TensorFileError(ValueError):
    """A file doesn't hold what was written there."""


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], *, overwrite: bool) -> None:
    """Write a file, whole or not at all; see `write_whole` for what it raises."""
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    content = _in_order(save(plain, dict(metadata)))

    def write(file: Path) -> None:
        file.write_bytes(content)

    write_whole(path, write, overwrite=overwrite)


def read_tensors(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """The texts and the tensors of a file.

    Raises:
        TensorFileError: it is something else, damaged, or holds other tensors than numbers of torch's usual types.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except Exception as error:  # the formats of other versions, of which not all become a SafetensorError
        raise TensorFileError(str(error) or type(error).__name__) from error
    odd = {name: tensor.dtype for name, tensor in tensors.items() if tensor.dtype not in _FLOATS | _WHOLE}
    if odd:
        raise TensorFileError(f"tensors of the types {odd}")
    return metadata, tensors


def load_exactly(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """`load_state_dict`, which takes the first of several numbers where the module has a single one (torch 2.8).

    Raises:
        ValueError: a tensor has another shape than the module's.
        RuntimeError: one is missing, or too many.
    """
    for name, own in module.state_dict().items():
        if name in tensors and tensors[name].shape != own.shape:
            raise ValueError(f"{name}: expected the shape {tuple(own.shape)}, got {tuple(tensors[name].shape)}")
    module.load_state_dict(tensors)


def parse_json(text: str) -> Any:
    """What a JSON text says.

    Raises:
        TensorFileError: it is none, or so deep or with numbers so long that nobody has meant it.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError, MemoryError) as error:
        raise TensorFileError(f"no JSON that can be read: {str(error) or type(error).__name__}") from error


def _in_order(content: bytes) -> bytes:
    """The same file with its texts in the order of their names; safetensors has them in that of a hash, another each time."""
    start = _LENGTH + int.from_bytes(content[:_LENGTH], "little")
    header = json.loads(content[_LENGTH:start])
    header[_METADATA] = dict(sorted(header[_METADATA].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _LENGTH)
    return len(text).to_bytes(_LENGTH, "little") + text + content[start:]
