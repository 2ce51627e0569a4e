"""A problem's native code, with what it takes to run it: found for a planner, or made."""

from __future__ import annotations

import logging
import time
import weakref
from collections.abc import Hashable
from dataclasses import dataclass, fields, replace
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dilqr_rl.adjoint import Adjoint
from dilqr_rl.consistency import disagreement
from dilqr_rl.fixed_point import LossGradient
from dilqr_rl.guess import Guess
from dilqr_rl.independence import near, plain_instance, refuse_coupled
from dilqr_rl.instance import Instance, check_values, named_tensors, own_tensors
from dilqr_rl.native import build
from dilqr_rl.native.arguments import Arguments, GradientArrays, arrange
from dilqr_rl.native.audit import Audit
from dilqr_rl.native.clock import clock
from dilqr_rl.native.comparison import compare
from dilqr_rl.native.model import Functions, Model, write_model
from dilqr_rl.native.threads import GROUP, in_groups, workers
from dilqr_rl.native.tracing import UntraceableError, Watch, watched_fingerprint
from dilqr_rl.options import ILQROptions
from dilqr_rl.problem import ControlProblem
from dilqr_rl.solution import History, Solution, Status

_REALS = (
    "tolerance",
    "step_tolerance",
    "sufficient_decrease",
    "regularisation_min",
    "regularisation_max",
    "regularisation_factor",
)
_COLUMNS = len(fields(History))  # in the order of the kernel's
_OFTEN = 8  # programs for one problem, after which a line in the log says so
_MOST_PER_PROBLEM = 16  # programs kept for one problem whose settings change


_log = logging.getLogger("dilqr_rl")
_reported: set[tuple[str, str]] = set()


@dataclass
class Structure:
    """What a problem is made of, for as long as the watch holds.

    Attributes:
        fingerprint: of its functions.
        watch: tells whether the problem is still the same.
        tensors: its parameters and buffers by name.
        problem: itself, weakly; a shallow copy shares what is kept with it.
        latest: the slots of the last instance, and the program, or why there is none.
    """

    fingerprint: Hashable
    watch: Watch
    tensors: dict[str, Tensor]
    problem: weakref.ref[ControlProblem]
    latest: tuple[Any, Program | str] | None = None


class _Programs(dict[Hashable, "Program | str"]):
    """The programs of one problem, by fingerprint; they are not copied or pickled with it."""

    structure: Structure | None = None
    made = 0

    def __deepcopy__(self, memo: Any) -> _Programs:
        return _Programs()

    def __reduce__(self) -> tuple[Any, ...]:
        return _Programs, ()


def structure_of(problem: ControlProblem) -> Structure:
    """What a problem is made of now."""
    known: _Programs = vars(problem).setdefault("_native_programs", _Programs())
    structure = known.structure
    if structure is None or structure.problem() is not problem or not structure.watch.holds():
        tensors = named_tensors(problem)
        known.structure = structure = Structure(*watched_fingerprint(problem), tensors, weakref.ref(problem))
    return structure


def find_program(instance: Instance, structure: Structure, x0: Tensor, u_init: Tensor, required: bool) -> Program | None:
    """The native code for an instance, made if there is none yet.

    Args:
        instance: the problems.
        structure: of their functions, as it is now.
        x0: start states (B, n) in float64, at which new code is compared with the functions.
        u_init: controls (B, T, m).
        required: raise where there is none.

    Raises:
        ValueError: there is none, and it is required; the message says why.
    """
    if x0.device.type == "cpu":
        latest = structure.latest
        if latest is None or latest[0] != instance.slots:
            structure.latest = latest = (instance.slots, _program(instance, structure, x0, u_init))
        found = latest[1]
        if isinstance(found, Program) and found.fits(instance):
            return found
        reason = found if isinstance(found, str) else "an integer tensor was replaced through params"
    else:
        reason = f"native code runs on the CPU, x0 is on {x0.device}"
    _say(instance.problem, reason, required)
    return None


def drop_program(problem: ControlProblem, program: Program, role: str, required: bool) -> None:
    """Have a program whose results aren't those of the problem's own functions never used again, and say so.

    Raises:
        ValueError: native code is required.
    """
    reason = (
        f"its {role} gave other results than native code that was made from them; do they depend on something that changes, "
        "or write into a tensor in a way that isn't followed?"
    )
    known: _Programs = vars(problem)["_native_programs"]
    for key, held in list(known.items()):
        if held is program:
            known[key] = reason
    known.structure = None
    _say(problem, reason, required)


def _say(problem: ControlProblem, reason: str, required: bool) -> None:
    """Tell once why there is no native code; raise where it is required."""
    label = _label(problem)
    if required:
        raise ValueError(f'backend: "native" is not possible for {label}: {reason}. Use "auto" or "torch", or change that.')
    if (label, reason) not in _reported:
        _reported.add((label, reason))
        _log.warning("solving %s with PyTorch, which is slower than native code: %s", label, reason)


def _program(instance: Instance, structure: Structure, x0: Tensor, u_init: Tensor) -> Program | str:
    """The program, or why there is none, kept with the problem."""
    known: _Programs = vars(instance.problem)["_native_programs"]
    key = (structure.fingerprint, tuple(instance.slots.items()))
    if key not in known:
        while len(known) >= _MOST_PER_PROBLEM:
            del known[next(iter(known))]
        known[key] = _make_program(instance, x0, u_init)
        known.made += 1
        if known.made == _OFTEN:
            _log.warning(
                "native code for %s has been made anew %d times, since what its functions read has changed; if they write it "
                "themselves, as a counter does, calls are quicker without",
                _label(instance.problem),
                _OFTEN,
            )
    return known[key]


def _make_program(instance: Instance, x0: Tensor, u_init: Tensor) -> Program | str:
    """The program, or why there is none."""
    problem = instance.problem
    check_values(instance)
    _call_once(instance, x0, u_init)
    refuse_coupled(instance, x0, u_init)
    try:
        model = trace_problem(problem)
        _compare(model, instance, x0, u_init)
        solver = build.solver(problem.state_size, problem.control_size)
        return Program(model, build.functions(model, _label(problem)), solver, len(instance.values), instance.positive_places())
    except UntraceableError as error:
        return str(error)
    except Exception as error:  # "auto" must not fail where the PyTorch path would do
        return f"the native path failed ({type(error).__name__}: {error})"


def _call_once(instance: Instance, x0: Tensor, u_init: Tensor) -> None:
    """Call the functions at the start, so that an error in them is told in the terms of the problem."""
    with torch.no_grad():
        first, x, u = instance.at_first_step(), x0.detach(), u_init[:, 0].detach()
        first.step(x, u, 0), first.stage_cost(x.unsqueeze(1), u.unsqueeze(1)), first.terminal_cost(x)


def _compare(model: Model, instance: Instance, x0: Tensor, u_init: Tensor) -> None:
    """Compare what was traced with the functions, called for a batch of points near the start."""
    plain = plain_instance(instance)

    def outputs(x: Tensor, u: Tensor) -> Tensor:
        stage = plain.at_first_step().stage_cost(x.unsqueeze(1), u.unsqueeze(1))
        return torch.cat((plain.step(x, u, 0), stage, plain.terminal_cost(x).unsqueeze(-1)), dim=-1)

    compare(model, outputs, near(x0, 3, seed=0), near(u_init[:, 0], 3, seed=1))


def _label(problem: ControlProblem) -> str:
    parts = [
        module.extra_repr() if type(module).__name__ == "_Function" else type(module).__name__ for module in problem.children()
    ]
    return f"a problem of {', '.join(parts)}"


def trace_problem(problem: ControlProblem) -> Model:
    """Generated code for a problem's functions.

    Raises:
        UntraceableError: there is none.
    """
    return write_model(
        Functions(problem.dynamics, problem.stage_cost, problem.terminal_cost, problem.state_size, problem.control_size),
        own_tensors(problem),
    )


class Program:
    """A problem's native code.

    Args:
        model: the generated source, and what it takes.
        addresses: of the functions compiled from it.
        kernel: the compiled module with `solve` and `adjoint` for the problem's sizes.
        count: how many values the problem has; those after them are of closures.
        positive: the places of those that must be above zero.
    """

    def __init__(self, model: Model, addresses: NDArray[np.int64], kernel: ModuleType, count: int, positive: set[int]) -> None:
        self._addresses, self._kernel, self._constants = addresses, kernel, model.constants
        self._sizes = np.array([model.constants_size, model.work_size], np.int64)
        self._own, self._closures, self._positive = model.values[:count], model.values[count:], positive
        self._audit = Audit()

    @property
    def depends_on_hidden_tensors(self) -> bool:
        """Whether a tensor of a closure requires a gradient."""
        return any(tensor.requires_grad for tensor in self._closures)

    def fits(self, instance: Instance) -> bool:
        """Whether the integer tensors are still those whose numbers are in the code."""
        same = all(tensor._version == version for tensor, version in self._constants)
        pairs = zip(instance.values, self._own, strict=True)
        return same and all(value.is_floating_point() or value is own for value, own in pairs)

    def arrange(self, instance: Instance) -> Arguments:
        """The values of an instance as arguments, once for its solve and its gradient."""
        arguments = arrange(instance, self._closures)
        if not arguments.sound(self._positive):
            check_values(instance)
        return arguments

    def disagreement(self, instance: Instance, solution: Solution, seconds: float, room: float) -> str | None:
        """Now and then a look at a solution that took so long (s) to find: what the problem's functions don't agree with.

        It is put off where it would take longer than `room` (s).
        """
        if not self._audit.due(seconds, room):
            return None
        began = time.perf_counter()
        found = disagreement(instance, solution)
        self._audit.spent(began)
        return found

    def solve(self, arguments: Arguments, x0: Tensor, guess: Guess, options: ILQROptions) -> Solution:
        """Solve B problems from x0 (B, n), beginning with a guess (B, ...)."""
        start, u = _array(x0), _array(guess.controls).copy()
        (B, n), T, m = start.shape, arguments.horizon, u.shape[-1]
        x = np.empty((B, T + 1, n)) if guess.states is None else _array(guess.states).copy()
        gains = np.empty((B, T, m, n)) if guess.gains is None else _array(guess.gains).copy()
        cost, residual = np.empty(B), np.empty(B)
        status, iterations, singular = np.empty(B, np.int64), np.empty(B, np.int64), np.empty(B, np.int64)
        history = np.full((B, options.max_iterations + 1 if options.record else 0, _COLUMNS), np.nan)
        given = (start, arguments.numbers, arguments.table, arguments.bound_rows)
        results = (x, u, cost, status, iterations, residual, gains, singular, history)
        settings = _Settings(options, (guess.states is not None) + (guess.gains is not None), workers(B, T))

        def solve_group(first: int, last: int) -> None:
            numbers = settings.integers, settings.reals(first, B)
            self._kernel.solve(self._addresses, T, self._sizes, first, last, *given, *numbers, *results)

        in_groups(solve_group, B, T)
        told = _history(history, iterations) if options.record else None
        found = (torch.from_numpy(part) for part in (x, u, cost, status, iterations, residual, gains, singular != 0))
        return replace(Solution(*found), history=told) if told else Solution(*found)  # type: ignore[arg-type]

    def pull_back(self, adjoint: NativeAdjoint, loss: LossGradient, with_values: bool) -> tuple[Tensor, GradientArrays]:
        """The gradients with respect to x0 and, if asked for, all values."""
        arguments, solution = adjoint.arguments, adjoint.solution
        x, u, status, singular = (
            part.numpy() for part in (solution.states, solution.controls, solution.status, solution.singular)
        )
        if singular.any():  # these are PyTorch's
            status = np.where(singular, Status.MAX_ITERATIONS, status)
        B, T, dx0 = x.shape[0], arguments.horizon, np.empty_like(x[:, 0])
        gradients = GradientArrays(arguments, B, -(-B // GROUP))
        given = (
            arguments.numbers,
            arguments.table,
            arguments.bound_rows,
            x,
            u,
            status,
            *map(_array, loss),
            int(with_values),
            dx0,
        )

        def differentiate_group(first: int, last: int) -> None:
            results = (gradients.numbers, gradients.table(first // GROUP))
            self._kernel.adjoint(self._addresses, T, self._sizes, first, last, int(adjoint.exact), *given, *results)

        in_groups(differentiate_group, B, T)
        return torch.from_numpy(dx0), gradients


class _Settings:
    """The options as the kernel takes them: for a group of problems, with its share of the time.

    `guess` is 0 where it has controls only, 1 where it has states, 2 where it has gains, too.
    """

    def __init__(self, options: ILQROptions, guess: int, threads: int) -> None:
        timed, self._threads = options.max_seconds is not None, threads
        self._clock = clock() if timed else None
        self._ends = self._clock.read() + (options.max_seconds or 0.0) if self._clock else np.inf
        told = (self._clock.address, self._clock.which) if self._clock else (0, 0)
        self.integers = np.array([options.max_iterations, options.line_search_steps, guess, *told], np.int64)
        self._reals = [getattr(options, name) for name in _REALS]

    def reals(self, first: int, batch_size: int) -> NDArray[np.float64]:
        """Those of the group that begins with problem `first`: as many groups as there are threads share the time in turns."""
        if self._clock is None:
            return np.array([*self._reals, np.inf])
        turns = -(-(batch_size - first) // (GROUP * self._threads))
        now = self._clock.read()
        return np.array([*self._reals, now + (self._ends - now) / turns])


def _history(rows: NDArray[np.float64], iterations: NDArray[np.int64]) -> History:
    used = rows[:, : iterations.max() + 1]
    return History(*(torch.from_numpy(used[..., column].copy()) for column in range(_COLUMNS)))


@dataclass(frozen=True)
class NativeAdjoint:
    """A `Pullback` by native code; of singular solutions, which are few, by PyTorch's."""

    program: Program
    instance: Instance
    arguments: Arguments
    solution: Solution
    exact: bool

    def __call__(
        self, values: tuple[Tensor, ...], needed: tuple[bool, ...], loss: LossGradient
    ) -> tuple[Tensor, list[Tensor | None]]:
        """See `Pullback`."""
        dx0, gradients = self.program.pull_back(self, loss, any(needed))
        pairs = enumerate(zip(values, needed, strict=True))
        found = [gradients.gradient(place, value.shape) if need else None for place, (value, need) in pairs]
        if not self.solution.singular.numpy().any():
            return dx0, found
        status = torch.where(self.solution.singular, self.solution.status, Status.MAX_ITERATIONS)
        adjoint = Adjoint(self.instance, replace(self.solution, status=status), self.exact)
        odd_dx0, odd = adjoint(values, needed, loss)
        both = zip(found, odd, strict=True)
        return dx0 + odd_dx0, [None if one is None or two is None else one + two.reshape(one.shape) for one, two in both]


def _array(tensor: Tensor) -> NDArray[np.float64]:
    array: NDArray[np.float64] = tensor.detach().contiguous().numpy()
    return array
