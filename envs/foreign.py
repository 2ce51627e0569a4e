"""Environments of Gymnasium's own, whose models are here and whose numbers they hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["gymnasiums_own"]


def gymnasiums_own(env: Any, env_id: str, attributes: Sequence[str]) -> Any:
    """An environment without its wrappers.

    Args:
        env: the environment, wrapped or not.
        env_id: what it should be.
        attributes: that it has then.

    Raises:
        ValueError: it lacks one.
    """
    base = env.unwrapped
    missing = [name for name in attributes if not hasattr(base, name)]
    if missing:
        raise ValueError(f"env: expected Gymnasium's {env_id}, got {base!r}, which lacks {missing}.")
    return base
