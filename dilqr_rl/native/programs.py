"""The programs of a problem: found for a planner, made where there is none, dropped where one is wrong."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dilqr_rl.independence import near, plain_instance, refuse_coupled
from dilqr_rl.instance import Instance, check_values, named_tensors, own_tensors
from dilqr_rl.locks import ONE_AT_A_TIME
from dilqr_rl.native import build
from dilqr_rl.native.comparison import compare, compare_gradients
from dilqr_rl.native.model import Functions, Model, write_model
from dilqr_rl.native.program import Program
from dilqr_rl.native.tracing import UntraceableError, Watch, watched_fingerprint
from dilqr_rl.problem import ControlProblem

SIMULATED = "its dynamics are a Simulator, which isn't made of PyTorch operations and runs on the PyTorch path"
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
    """The programs of one problem, or why there is none, by fingerprint; they are not copied or pickled with it."""

    structure: Structure | None = None
    made = 0

    def __deepcopy__(self, memo: Any) -> _Programs:
        return _Programs()

    def __reduce__(self) -> tuple[Any, ...]:
        return _Programs, ()


def structure_of(problem: ControlProblem) -> Structure:
    """What a problem is made of now."""
    known = _programs_of(problem)
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
    if instance.simulator is not None:
        reason = SIMULATED
    elif x0.device.type == "cpu":
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
    known = _programs_of(problem)
    known.update({key: reason for key, held in list(known.items()) if held is program})
    known.structure = None
    _say(problem, reason, required)


def trace_problem(problem: ControlProblem) -> Model:
    """Generated code for a problem's functions.

    Raises:
        UntraceableError: there is none.
    """
    return write_model(
        Functions(problem.dynamics, problem.stage_cost, problem.terminal_cost, problem.state_size, problem.control_size),
        own_tensors(problem),
    )


def _programs_of(problem: ControlProblem) -> _Programs:
    known: _Programs = vars(problem).setdefault("_native_programs", _Programs())
    return known


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
    known = _programs_of(instance.problem)
    key = (structure.fingerprint, tuple(instance.slots.items()))
    if key not in known:
        while len(known) >= _MOST_PER_PROBLEM:
            known.pop(next(iter(known)), None)
        known[key] = structure.watch.blind or _make_program(instance, x0, u_init, list(known.values()))
        known.made += 1
        if known.made == _OFTEN:
            _log.warning(
                "native code for %s has been made anew %d times, since what its functions read has changed; if they write it "
                "themselves, as a counter does, calls are quicker without",
                _label(instance.problem),
                _OFTEN,
            )
    return known[key]


def _make_program(instance: Instance, x0: Tensor, u_init: Tensor, others: list[Program | str]) -> Program | str:
    """The program, or why there is none; one of the others where the same code comes out again."""
    with ONE_AT_A_TIME:  # nobody else has other tensors in the functions' modules while they are traced and compared
        return _made(instance, x0, u_init, others)


def _made(instance: Instance, x0: Tensor, u_init: Tensor, others: list[Program | str]) -> Program | str:
    problem = instance.problem
    _try_functions(instance, x0, u_init)
    try:
        model = trace_problem(problem)
        same = next((other for other in others if isinstance(other, Program) and other.is_of(model)), None)
        if same is not None:
            return same
        _compare(model, instance, x0, u_init)
        solver = build.solver(problem.state_size, problem.control_size)
        return Program(model, build.functions(model, _label(problem)), solver, len(instance.values), instance.positive_places())
    except UntraceableError as error:
        return str(error)
    except Exception as error:  # "auto" must not fail where the PyTorch path would do
        return f"the native path failed ({type(error).__name__}: {error})"


def traced(instance: Instance, x0: Tensor, u_init: Tensor) -> Model:
    """Generated code for an instance, compared with its functions near the start, x0 (B, n) and u_init (B, T, m).

    Raises:
        UntraceableError: there is none.
        ValueError: the functions fail.
    """
    _try_functions(instance, x0, u_init)
    build.refuse_large(instance.problem.state_size, instance.problem.control_size)
    model = trace_problem(instance.problem)
    _compare(model, instance, x0, u_init)
    return model


def _try_functions(instance: Instance, x0: Tensor, u_init: Tensor) -> None:
    check_values(instance)
    _call_once(instance, x0, u_init)
    refuse_coupled(instance, x0, u_init)


def _call_once(instance: Instance, x0: Tensor, u_init: Tensor) -> None:
    """Call the functions at the start, so that an error in them is told in the terms of the problem."""
    with torch.no_grad():
        first, x, u = instance.at_first_step(), x0.detach(), u_init[:, 0].detach()
        first.step(x, u, 0), first.stage_cost(x.unsqueeze(1), u.unsqueeze(1)), first.terminal_cost(x)


def _compare(model: Model, instance: Instance, x0: Tensor, u_init: Tensor) -> None:
    """Compare what was traced with the functions, called for a batch of points near the start."""
    plain = plain_instance(instance)

    def outputs(x: Tensor, u: Tensor, values: tuple[Tensor, ...] = plain.values) -> Tensor:
        given = plain.with_values(values)
        stage = given.at_first_step().stage_cost(x.unsqueeze(1), u.unsqueeze(1))
        return torch.cat((given.step(x, u, 0), stage, given.terminal_cost(x).unsqueeze(-1)), dim=-1)

    x, u = near(x0, 3, seed=0), near(u_init[:, 0], 3, seed=1)
    compare(model, outputs, x, u)
    compare_gradients(model, outputs, x, u, plain.values)


def _label(problem: ControlProblem) -> str:
    parts = [
        module.extra_repr() if type(module).__name__ == "_Function" else type(module).__name__ for module in problem.children()
    ]
    return f"a problem of {', '.join(parts)}"
