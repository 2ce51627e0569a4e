"""Settings behind objects: their changes are noticed, or what can't be watched isn't taken natively."""

from __future__ import annotations

import array
import collections
import contextvars
import fractions
import functools
import itertools
import operator
import sys
import threading
import time
import types
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
import pytest
import torch
from problems import FLOAT, uniform
from torch import Tensor, nn
from traced_operations import first

from dilqr_rl import ILQR, ControlProblem, ILQROptions
from dilqr_rl.native.tracing import fingerprint

GLOBAL_GAIN = 0.5
X0 = uniform(3, 0, (-1.0, 1.0), (-1.0, 1.0), (-1.0, 1.0))


def problem_of(dynamics: Any) -> ControlProblem:
    def tame(x: Tensor, u: Tensor) -> Tensor:
        return (x - 0.2).square().sum(-1) + 0.5 * u.square().sum(-1)

    return ControlProblem(dynamics, tame, horizon=3, state_size=3, control_size=2, u_min=-0.6, u_max=0.5)


def controls(problem: ControlProblem, backend: Literal["native", "torch"]) -> Tensor:
    return ILQR(problem, ILQROptions(tolerance=1e-11, backend=backend))(X0).controls


class Settings:
    gain = 0.9


BEHIND_PROXY = Settings()


class Protocols:
    """What Python asks of an object by itself."""

    def __init__(self) -> None:
        self.values = {"gain": 0.9}

    def __getitem__(self, name: str) -> float:
        return self.values[name]

    def __getattr__(self, name: str) -> float:
        if name == "gain":
            return self.__dict__["values"]["gain"]
        raise AttributeError(name)

    def __mul__(self, x: Tensor) -> Tensor:
        return self.values["gain"] * x


class Terms(nn.Module):
    """Sums terms of a container that is empty at first."""

    def __init__(self, terms: Any) -> None:
        super().__init__()
        self.terms = terms

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        return sum((term * x if isinstance(term, Tensor) else term(x) for term in self.terms), start=0.5 * x + first(u))


@functools.singledispatch
def generic(x: Tensor) -> Tensor:
    return GLOBAL_GAIN * x


@functools.wraps(first)
def wrapped(x: Tensor) -> Tensor:
    return GLOBAL_GAIN * x


@functools.singledispatch
def registered(x: Tensor) -> Tensor:
    return 0.9 * x


class WithProperty(type):
    @property
    def gain(cls) -> float:
        return cls._gain  # type: ignore[attr-defined, no-any-return]


class ByMetaclass(metaclass=WithProperty):
    _gain = 0.9


class ByMethod:
    @functools.singledispatchmethod
    def scaled(self, x: Tensor) -> Tensor:
        return GLOBAL_GAIN * x


def imported(x: Tensor, u: Tensor) -> Tensor:
    import settings_of_a_user  # type: ignore[import-not-found]

    return settings_of_a_user.gain * x + first(u)


def changes_behind_libraries() -> dict[str, tuple[Any, Callable[[], Any]]]:
    """Dynamics that find their settings through something of a library, and what changes these."""
    plain, get, method = types.SimpleNamespace(gain=0.9), operator.attrgetter("values.gain"), ByMethod()
    seen, nested = weakref.proxy(BEHIND_PROXY), types.SimpleNamespace(values=plain)
    normal_one = torch.distributions.Normal(torch.tensor(0.3, dtype=FLOAT), 1.0, validate_args=False)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.9)
    return {
        "behind a weak proxy": (lambda x, u: seen.gain * x + first(u), lambda: setattr(BEHIND_PROXY, "gain", 0.4)),
        "an attrgetter's attribute": (lambda x, u: get(nested) * x + first(u), lambda: setattr(plain, "gain", 0.4)),
        "a metaclass's property": (lambda x, u: ByMetaclass.gain * x + first(u), lambda: setattr(ByMetaclass, "_gain", 0.4)),
        "a generic function's case": (
            lambda x, u: registered(x) + first(u),
            lambda: registered.register(torch.Tensor)(lambda x: 0.4 * x),
        ),
        "a generic method's global": (lambda x, u: method.scaled(x) + first(u), lambda: globals().update(GLOBAL_GAIN=-0.4)),
        "a distribution": (
            lambda x, u: 0.9 * x + 0.3 * normal_one.log_prob(x) + first(u),
            lambda: setattr(normal_one, "loc", torch.tensor(-1.0, dtype=FLOAT)),
        ),
        "an optimiser's rate": (
            lambda x, u: optimizer.param_groups[0]["lr"] * x + first(u),
            lambda: optimizer.param_groups[0].update(lr=0.4),
        ),
    }


def changes_of_objects() -> dict[str, tuple[Any, Callable[[], Any]]]:
    """Dynamics, and what changes them."""
    objects = [Protocols() for _ in range(3)]
    module = sys.modules["settings_of_a_user"] = types.ModuleType("settings_of_a_user")
    module.gain = 0.9  # type: ignore[attr-defined]
    table, numbers, users = np.full(5_000, 0.9), array.array("d", [0.9]), collections.UserList([0.9])
    variable = contextvars.ContextVar("variable", default=0.9)
    mask, layers, weights = torch.tensor([True, False, True]), Terms(nn.ModuleList()), Terms(nn.ParameterList())
    fraction = fractions.Fraction(9, 10)
    held = [fraction]
    return {
        "__getitem__": (lambda x, u: objects[0]["gain"] * x + first(u), lambda: objects[0].values.update(gain=0.4)),
        "__getattr__": (lambda x, u: objects[1].gain * x + first(u), lambda: objects[1].values.update(gain=0.4)),
        "__mul__": (lambda x, u: objects[2] * x + first(u), lambda: objects[2].values.update(gain=0.4)),
        "a module imported inside": (imported, lambda: setattr(module, "gain", 0.4)),
        "an element of a larger array": (lambda x, u: table[7] * x + first(u), lambda: table.__setitem__(7, 0.4)),
        "array.array": (lambda x, u: numbers[0] * x + first(u), lambda: numbers.__setitem__(0, 0.4)),
        "UserList": (lambda x, u: users[0] * x + first(u), lambda: users.__setitem__(0, 0.4)),
        "a context variable": (lambda x, u: variable.get() * x + first(u), lambda: variable.set(0.4)),
        "a mask through .data": (lambda x, u: torch.where(mask, x, 0.3 * x) + first(u), lambda: mask.data.logical_not_()),
        "a generic function's global": (lambda x, u: generic(x) + first(u), lambda: globals().update(GLOBAL_GAIN=-0.4)),
        "a wrapped function's global": (lambda x, u: wrapped(x) + first(u), lambda: globals().update(GLOBAL_GAIN=0.9)),
        "a fraction": (lambda x, u: float(held[0]) * x + first(u), lambda: held.__setitem__(0, fractions.Fraction(2, 5))),
        "a layer in an empty ModuleList": (layers, lambda: layers.terms.append(nn.Tanh())),
        "a number in an empty ParameterList": (
            weights,
            lambda: weights.terms.append(nn.Parameter(torch.tensor(0.3, dtype=FLOAT))),
        ),
    }


@pytest.mark.parametrize("name", changes_of_objects() | changes_behind_libraries())
def test_a_change_behind_an_object_is_seen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the watch, since native code is asked for: the audit would end in an error."""
    monkeypatch.setitem(globals(), "GLOBAL_GAIN", 0.5)
    dynamics, change = (changes_of_objects() | changes_behind_libraries())[name]
    problem = problem_of(dynamics)
    before = controls(problem, "native")
    change()
    after = controls(problem, "native")
    torch.testing.assert_close(after, controls(problem, "torch"), rtol=1e-9, atol=1e-9)
    assert not torch.allclose(before, after, rtol=1e-4, atol=1e-4)


def endless() -> Iterator[float]:
    while True:
        yield 0.9


UNWATCHED: dict[str, tuple[Any, str]] = {
    "a generator": (endless(), r"what an iterator or a file that its functions read \(generator\) gives next can't be noticed"),
    "an iterator": (itertools.repeat(0.9), r"what an iterator or a file that its functions read \(repeat\) gives next"),
    "a large array": (np.full(100_000, 0.9), r"changes of an array of 800000 bytes that its functions read can't be noticed"),
}


@pytest.mark.parametrize("kind", UNWATCHED)
def test_what_cannot_be_watched_takes_the_pytorch_path(kind: str) -> None:
    held, message = UNWATCHED[kind]
    problem = problem_of(lambda x, u: (held[7] if kind == "a large array" else next(held)) * x + first(u))
    with pytest.raises(ValueError, match=message):
        controls(problem, "native")
    assert ILQR(problem)(X0).converged.all()


def test_a_large_array_that_is_constant_is_fine() -> None:
    table = np.full(100_000, 0.9)
    table.setflags(write=False)
    view = np.full(100_000, 0.9)[:]
    view.setflags(write=False)  # but not what it shows
    controls(problem_of(lambda x, u: table[7] * x + first(u)), "native")
    with pytest.raises(ValueError, match=r"changes of an array of 800000 bytes"):
        controls(problem_of(lambda x, u: view[7] * x + first(u)), "native")


def test_dates_are_looked_at_like_numbers() -> None:
    dates = np.array(["2020-01-01"], dtype="datetime64[D]")
    controls(problem_of(lambda x, u: (0.9 if len(dates) else 0.4) * x + first(u)), "native")


class Keeping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[int, float] = {}

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        return self.kept.setdefault(x.ndim, 0.9) * x + first(u)


def test_a_dictionary_that_another_thread_fills_can_be_looked_at() -> None:
    module, done, interval = Keeping(), threading.Event(), sys.getswitchinterval()

    def fill() -> None:
        for i in itertools.count():
            module.kept[i % 500] = float(i)
            if i % 500 == 499:
                module.kept.clear()
            if done.is_set():
                return

    thread = threading.Thread(target=fill)
    sys.setswitchinterval(1e-6)
    thread.start()
    try:
        ends = time.monotonic() + 1.0
        while time.monotonic() < ends:
            fingerprint(module)
    finally:
        done.set()
        thread.join()
        sys.setswitchinterval(interval)
