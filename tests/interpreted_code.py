"""A problem's generated code run by Python itself: what it computes, without the seconds that a compiler takes.

With z = (x, u), multipliers lambda and mu, a direction d and a weight w, as dilqr_rl/native/model.py has them.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from problems import FLOAT, normal
from torch import Tensor

from dilqr_rl import ControlProblem
from dilqr_rl.native.programs import trace_problem

INTRINSICS: dict[str, Callable[..., Any]] = {"select": lambda condition, then, otherwise: then if condition else otherwise}


@dataclass(frozen=True)
class Point:
    """Where to evaluate: x (n,), u (m,), lam and mu (n,), d (n+m,), w."""

    x: Tensor
    u: Tensor
    lam: Tensor
    mu: Tensor
    d: Tensor
    w: float


def random_point(problem: ControlProblem, seed: int) -> Point:
    n, m = problem.state_size, problem.control_size
    x, lam, mu, rest = normal(4, n + m, seed=seed).unbind(0)
    return Point(0.7 * x[:n], 0.5 * x[n:], lam[:n], mu[:n], rest, 0.6)


def interpret(problem: ControlProblem, points: list[Point]) -> list[dict[str, Tensor]]:
    """At each point: next state, costs, all derivatives, and the gradient of the bracket by every parameter's name."""
    model = trace_problem(problem)
    functions = run_source(model.source)
    numbers = np.concatenate([value.detach().to(FLOAT).reshape(-1).numpy() for value in model.values])
    offsets = np.cumsum([0, *(value.numel() for value in model.values[:-1])])
    c, work = np.full(model.constants_size, np.nan), np.full(model.work_size + 1, np.nan)  # NaN would show what is read unset
    functions["constants"](numbers, offsets, c, work)
    common = (c, numbers, offsets, work)
    places = {id(value): (start, start + value.numel()) for value, start in zip(model.values, offsets, strict=True)}

    def at(point: Point) -> dict[str, Tensor]:
        x, u, lam, mu, d = (part.numpy() for part in (point.x, point.u, point.lam, point.mu, point.d))
        n, k = x.size, x.size + u.size
        sizes = {"next": n, "F": n * k, "g": k, "H": k * k, "C": k * k, "g_T": n, "H_T": n * n}
        out = {name: np.full(size, np.nan) for name, size in sizes.items()}
        out["cost"] = np.array(functions["advance"](x, u, *common, out["next"]))
        out["terminal"] = np.array(functions["terminal"](x, *common))
        functions["expand"](x, u, lam, *common, out["F"], out["g"], out["H"], out["C"])
        functions["expand_terminal"](x, *common, out["g_T"], out["H_T"])
        dc, gradient = np.zeros_like(c), np.zeros_like(numbers)
        functions["sensitivity"](x, u, lam, d, mu, point.w, *common, dc, gradient, offsets)
        functions["sensitivity_terminal"](x, d[:n].copy(), point.w, *common, dc, gradient, offsets)
        functions["constants_gradient"](numbers, offsets, c, work, dc, gradient, offsets)
        for name, parameter in problem.named_parameters():
            out[name] = gradient[slice(*places[id(parameter)])]
        return {name: torch.from_numpy(part).reshape(-1) for name, part in out.items()}

    with np.errstate(all="ignore"):  # of branches that are not taken
        return [at(point) for point in points]


def run_source(source: str) -> dict[str, Callable[..., Any]]:
    """The functions of generated source, with numba's decorators replaced by ones that do nothing."""

    def anything(*_: Any, **__: Any) -> Callable[..., Any]:
        return anything

    def stand_in(name: str, **content: Any) -> types.ModuleType:
        module = types.ModuleType(name)
        module.__getattr__ = lambda _: anything  # type: ignore[method-assign]
        vars(module).update(content)
        return module

    plain = {
        "numba": stand_in("numba", cfunc=lambda *_, **__: lambda function: function),
        "numba.types": stand_in("numba.types"),
        "numba.extending": stand_in("numba.extending", intrinsic=lambda function: INTRINSICS[function.__name__]),
    }
    functions: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        for name, module in plain.items():
            patch.setitem(sys.modules, name, module)
        exec(compile(source, "<generated>", "exec"), functions)
    return functions


def expected(problem: ControlProblem, points: list[Point]) -> list[dict[str, Tensor]]:
    """The same from the problem's functions, by torch's autograd."""

    def at(point: Point) -> dict[str, Tensor]:
        n, (z, x_T) = point.x.numel(), (part.clone().requires_grad_() for part in (torch.cat((point.x, point.u)), point.x))
        following, cost = problem.dynamics(z[:n], z[n:]), problem.stage_cost(z[:n], z[n:])
        last = problem.terminal_cost(x_T) if problem.terminal_cost is not None else 0.0 * x_T.sum()
        g, H = two_derivatives(cost, z)
        pull, C = two_derivatives((point.lam * following).sum(), z)
        g_T, H_T = two_derivatives(last, x_T)
        rows = [derivative(component, z).detach() for component in following]
        bracket = ((g + pull) * point.d).sum() + (point.mu * following).sum() + (g_T * point.d[:n]).sum()
        names, parameters = zip(*problem.named_parameters(), strict=True)
        bracket = bracket + point.w * (cost + last)
        gradients = torch.autograd.grad(bracket, parameters, allow_unused=True, materialize_grads=True)
        out = {"next": following, "cost": cost, "terminal": last, "F": torch.stack(rows), "g": g, "H": H, "C": C, "g_T": g_T}
        out |= {"H_T": H_T, **dict(zip(names, gradients, strict=True))}
        return {name: part.detach().reshape(-1) for name, part in out.items()}

    return [at(point) for point in points]


def two_derivatives(function: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    gradient = derivative(function, z)
    return gradient, torch.stack([derivative(component, z).detach() for component in gradient])


def derivative(function: Tensor, z: Tensor) -> Tensor:
    if not function.requires_grad:
        return torch.zeros_like(z)
    (found,) = torch.autograd.grad(function, z, create_graph=True, allow_unused=True, materialize_grads=True)
    return found


def differences(problem: ControlProblem, seeds: list[int]) -> list[str]:
    """What differs between generated code and autograd at random points; empty where all is well."""
    points, wrong = [random_point(problem, seed) for seed in seeds], set()
    for found, truth in zip(interpret(problem, points), expected(problem, points), strict=True):
        for name, one in truth.items():
            error = ((found[name] - one).abs() / one.abs().clamp(min=1.0)).max() if one.numel() else torch.zeros(())
            if not error <= 1e-10:  # both compute in float64, in another order
                wrong.add(f"{name}: {error:.1e}")
    return sorted(wrong)
