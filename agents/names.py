"""Keyword arguments that a class of ours hands on to Stable-Baselines3's, held against the names that anybody takes."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from typing import Any

__all__ = ["refuse_unknown_names"]


def refuse_unknown_names(policy: type[Any], given: Mapping[str, Any]) -> None:
    """Raise a ValueError for a name that no constructor of a policy's class, or of those above it, has an argument of."""
    known = {name for owner in policy.__mro__ if "__init__" in vars(owner) for name in _arguments(owner)}
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            meant = f"Is it {near[0]!r}?" if near else f"It has {sorted(known)}."
            raise ValueError(f"policy_kwargs: expected arguments of {policy.__name__}, got {name!r}. {meant}")


def _arguments(owner: type[Any]) -> list[str]:
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(vars(owner)["__init__"]).parameters
    return [name for name, parameter in parameters.items() if parameter.kind in named and name != "self"]
