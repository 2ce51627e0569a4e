"""What surrounds a native solve: bad neighbours, threads, processes, copies, machines without a compiler."""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from models import CORRECTED_TANH
from problems import (
    CARTPOLE,
    FLOAT,
    NETWORK_DYNAMICS,
    QUADROTOR,
    Case,
    cartpole,
    gradient_of,
    pendulum,
    published_pendulum_starts,
)
from torch import Tensor

from dilqr_rl import ILQR, ControlProblem, ILQROptions, Solution, Status

Backend = Literal["auto", "native", "torch"]
FIELDS = ("states", "controls", "cost", "status", "num_iterations", "residual", "gains", "singular")


def planner_of(problem: ControlProblem, backend: Backend = "native", **settings: Any) -> ILQR:
    return ILQR(problem, ILQROptions(backend=backend, tolerance=1e-10), **settings)


def assert_bitwise(one: Solution, other: Solution) -> None:
    for name in FIELDS:
        assert torch.equal(getattr(one, name), getattr(other, name)), name


def part_of(solution: Solution, index: Any) -> Solution:
    return Solution(**{name: getattr(solution, name)[index] for name in FIELDS})


# A bad problem in the batch.


def fragile() -> ControlProblem:
    """A pendulum in a world whose cost is a number only while the rate is below 6."""

    def cost(x: Tensor, u: Tensor) -> Tensor:
        return (x[..., 0] - 1.0).square() + 0.1 * torch.sqrt(6.0 - x[..., 2]) + 0.1 * u.square().sum(-1)

    return ControlProblem(pendulum().dynamics, cost, horizon=5, state_size=3, control_size=1, u_min=-2.0, u_max=2.0)


def test_a_problem_that_gives_nan_ends_nonfinite_and_leaves_its_neighbours_untouched() -> None:
    x0 = published_pendulum_starts(6)
    bad = x0.clone()
    bad[2] = torch.tensor([0.0, 1.0, 7.0], dtype=FLOAT)
    results = []
    for start in (x0, bad):
        problem, start = fragile(), start.clone().requires_grad_()
        solution = planner_of(problem)(start)
        kept = torch.ones(6, dtype=FLOAT)
        kept[2] = 0.0
        ((solution.controls.square().sum((1, 2)) + solution.cost).nan_to_num(0.0) * kept).sum().backward()
        assert start.grad is not None
        results.append((solution, start.grad, gradient_of(problem, "dynamics.mass")))
    (healthy, grad, mass), (ill, ill_grad, ill_mass) = results
    assert healthy.converged.all()
    assert ill.status[2] == Status.NONFINITE
    others = [0, 1, 3, 4, 5]
    assert_bitwise(part_of(ill, others), part_of(healthy, others))
    assert torch.equal(ill_grad[others], grad[others])
    assert torch.equal(ill_mass, mass)
    assert not ill_grad[2].any()
    assert torch.isfinite(ill.controls).all()
    assert planner_of(fragile(), "torch")(bad).status[2] == Status.NONFINITE


def test_parameters_that_give_nan_for_one_problem_leave_the_others_untouched() -> None:
    problem, x0 = cartpole(6), CARTPOLE.starts(4, 0)
    gravity = torch.full((4,), 9.8, dtype=FLOAT)
    good = planner_of(problem)(x0, params={"dynamics.gravity": gravity})
    gravity[1] = 1e200
    ill = planner_of(problem)(x0, params={"dynamics.gravity": gravity})
    assert ill.status[1] == Status.NONFINITE
    assert_bitwise(part_of(ill, [0, 2, 3]), part_of(good, [0, 2, 3]))


# Threads.


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def solved(case: Case, x0: Tensor, horizon: int = 6) -> tuple[Solution, dict[str, Tensor]]:
    """The solution, and the gradients of x0 and of all parameters, shared by the whole batch."""
    problem, x0 = case.build(horizon), x0.clone().requires_grad_()
    solution = planner_of(problem)(x0)
    (solution.controls.sin().sum() + solution.states.cos().sum() + solution.cost.sum()).backward()
    assert x0.grad is not None
    return solution, {"x0": x0.grad, **{name: gradient_of(problem, name) for name, _ in problem.named_parameters()}}


@pytest.mark.parametrize("case", [CARTPOLE, QUADROTOR, CORRECTED_TANH], ids=str)
def test_results_are_bitwise_the_same_with_any_number_of_threads(case: Case, threads: Callable[[int], None]) -> None:
    x0, results = case.starts(67, 0), []
    for count in (1, 2, 4, 1):
        threads(count)
        results.append(solved(case, x0))
    for solution, gradients in results[1:]:
        assert_bitwise(solution, results[0][0])
        for name, gradient in gradients.items():
            assert torch.equal(gradient, results[0][1][name]), name


@pytest.mark.parametrize("case", [CARTPOLE, NETWORK_DYNAMICS, CORRECTED_TANH], ids=str)
def test_results_are_bitwise_the_same_in_any_company(case: Case) -> None:
    x0 = case.starts(9, 1)
    together, gradients = solved(case, x0)
    for index in ([4], [8, 0], [5, 4, 3, 2, 1]):
        some, some_gradients = solved(case, x0[index])
        assert_bitwise(some, part_of(together, index))
        assert torch.equal(some_gradients["x0"], gradients["x0"][index])


def test_several_python_threads_may_solve_at_once(threads: Callable[[int], None]) -> None:
    threads(2)
    jobs = [(case, case.starts(20, seed)) for seed in range(4) for case in (CARTPOLE, QUADROTOR)]
    expected = [solved(*job) for job in jobs]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            for (solution, gradients), (one, its) in zip(pool.map(lambda job: solved(*job), jobs), expected, strict=True):
                assert_bitwise(solution, one)
                assert all(torch.equal(gradient, its[name]) for name, gradient in gradients.items())


def test_one_planner_may_be_used_by_several_python_threads() -> None:
    planner, starts = planner_of(cartpole(6).requires_grad_(False)), [CARTPOLE.starts(10, seed) for seed in range(8)]
    expected = [planner(x0) for x0 in starts]
    fresh = planner_of(cartpole(6).requires_grad_(False))  # so that its first call happens in several threads, too
    with ThreadPoolExecutor(4) as pool:
        for one, other in zip(pool.map(fresh, starts), expected, strict=True):
            assert_bitwise(one, other)


# Processes.


def _solve_in_a_child(connection: Any) -> None:
    solution, gradients = solved(CARTPOLE, CARTPOLE.starts(8, 0))
    connection.send([solution.controls.tolist(), gradients["x0"].tolist()])


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork on this platform")
def test_a_forked_process_solves(threads: Callable[[int], None]) -> None:
    threads(2)
    solution, gradients = solved(CARTPOLE, CARTPOLE.starts(8, 0))  # whatever threads it keeps don't survive the fork
    threads(1)  # torch's own threads don't either, and torch hangs
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_solve_in_a_child, args=(theirs,))
    child.start()
    try:
        assert ours.poll(60), "the forked process hangs"
        assert ours.recv() == [solution.controls.tolist(), gradients["x0"].tolist()]
        child.join(30)
        assert child.exitcode == 0
    finally:
        child.kill()


SCRIPT = """
import multiprocessing, pickle, sys
import torch
from dilqr_rl import ILQR, ILQROptions
from problems import cartpole, published_cartpole_starts

def work(planner):
    torch.set_num_threads(1)
    return planner(published_cartpole_starts(5)).controls.tolist()

if __name__ == "__main__":
    planner = ILQR(cartpole(6).requires_grad_(False), ILQROptions(backend="native"))
    expected = work(planner)
    context = multiprocessing.get_context("spawn")
    with context.Pool(2) as pool:
        for result in pool.map(work, [planner, planner]):
            assert result == expected
    print("agreed")
"""


def run(script: str, tmp_path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A script in a process of its own that finds the tests' table of problems."""
    file = tmp_path / "script.py"
    file.write_text(textwrap.dedent(script), encoding="utf-8")
    paths = os.pathsep.join(path for path in (str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")) if path)
    return subprocess.run(
        [sys.executable, str(file)],
        env={**os.environ, "PYTHONPATH": paths, **environment},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_spawned_processes_solve_with_a_planner_sent_to_them(tmp_path: Path) -> None:
    result = run(SCRIPT, tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "agreed"


# Copies.


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda planner: pickle.loads(pickle.dumps(planner))], ids=["deepcopy", "pickle"]
)
def test_a_planner_that_has_solved_can_be_copied(duplicate: Callable[[ILQR], ILQR]) -> None:
    x0 = QUADROTOR.starts(4, 0)
    planner = planner_of(QUADROTOR.build(5))
    before = planner(x0)
    before.controls.sum().backward()
    twin = duplicate(planner)
    assert_bitwise(part_of(twin(x0), slice(None)), part_of(before, slice(None)))
    with torch.no_grad():
        twin.problem.get_parameter("dynamics.mass").mul_(1.3)
    changed = twin(x0)
    assert not torch.equal(changed.controls, before.controls)
    assert torch.equal(planner(x0).controls, before.controls)
    torch.testing.assert_close(changed.controls, planner_of(twin.problem, "torch")(x0).controls, rtol=1e-8, atol=1e-8)
    state = {name: value.clone() for name, value in planner.state_dict().items()}
    assert set(state) == set(ILQR(QUADROTOR.build(5)).state_dict())  # solving has added nothing


# Machines without a compiler.

WITHOUT = """
import logging, sys, warnings
{block}
import torch
from dilqr_rl import ILQR, ILQROptions
from problems import pendulum, published_pendulum_starts
x0 = published_pendulum_starts(3)
found = []
for backend in ("auto", "torch"):
    problem = pendulum(5)
    solution = ILQR(problem, ILQROptions(backend=backend))(x0)
    solution.controls.sum().backward()
    found.append((solution.controls, problem.dynamics.mass.grad))
assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])
try:
    ILQR(pendulum(5), ILQROptions(backend="native"))(x0)
except ValueError as error:
    print(error)
"""
BLOCK = """
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("numba", "llvmlite"):
            raise ImportError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
"""
BROKEN = """
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "llvmlite":
            raise OSError("libllvmlite.so: cannot open shared object file")

sys.meta_path.insert(0, Blocker())
"""


@pytest.mark.parametrize(
    ("block", "environment"),
    [("", {"NUMBA_DISABLE_JIT": "1"}), (BLOCK, {}), pytest.param(BROKEN, {}, marks=pytest.mark.slow)],
    ids=["NUMBA_DISABLE_JIT", "numba missing", "numba broken"],
)
def test_without_a_working_numba_everything_runs_on_the_pytorch_path(
    block: str, environment: dict[str, str], tmp_path: Path
) -> None:
    result = run(WITHOUT.replace("{block}", block), tmp_path, **environment)
    assert result.returncode == 0, result.stderr
    assert "native" in result.stdout, result.stdout
    assert "numba" in result.stdout.lower(), result.stdout
    told = [line for line in result.stderr.splitlines() if line.strip()]
    assert len(told) == 1, told  # once, whatever the number of problems and calls
    assert "numba" in told[0].lower()


# The planner's other promises.


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_unroll_takes_the_pytorch_path(backend: Backend) -> None:
    problem, x0 = pendulum(5), published_pendulum_starts(3)
    planner_of(problem, backend, gradient="unroll")(x0).controls.sum().backward()
    unrolled = gradient_of(problem, "dynamics.mass").clone()
    problem.zero_grad()
    planner_of(problem)(x0).controls.sum().backward()
    torch.testing.assert_close(unrolled, gradient_of(problem, "dynamics.mass"), rtol=1e-7, atol=1e-9)


def test_unroll_is_refused_where_native_is_asked_for() -> None:
    with pytest.raises(ValueError, match=r"unroll"):
        planner_of(pendulum(5), gradient="unroll")(published_pendulum_starts(3).requires_grad_())


@pytest.mark.parametrize("gradient", ["implicit", "diffmpc"])
def test_second_derivatives_are_refused(gradient: Literal["implicit", "diffmpc"]) -> None:
    x0 = published_pendulum_starts(2).requires_grad_()
    solution = planner_of(pendulum(5), gradient=gradient)(x0)
    with pytest.raises(NotImplementedError, match=r'^second derivatives \(create_graph=True\) .* use gradient="unroll"'):
        torch.autograd.grad(solution.controls.sum(), x0, create_graph=True)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
@pytest.mark.parametrize("part", ["states", "controls", "cost"])
def test_a_loss_whose_gradient_is_no_number_is_refused(part: str, wrong: float) -> None:
    solution = planner_of(pendulum(4))(published_pendulum_starts(2))
    values = getattr(solution, part)
    weights = torch.tensor([1.0, wrong], dtype=FLOAT).view(2, *[1] * (values.ndim - 1))
    with pytest.raises(ValueError, match=r"^loss: its gradient with respect to the solution of problem 1 is NaN or infinite\."):
        (values * weights).sum().backward()


def test_a_graph_can_be_walked_twice_if_it_is_kept() -> None:
    problem = pendulum(5)
    solution = planner_of(problem)(published_pendulum_starts(3))
    mass = problem.get_parameter("dynamics.mass")
    (once,) = torch.autograd.grad(solution.controls.sum(), mass, retain_graph=True)
    (twice,) = torch.autograd.grad(solution.controls.sum(), mass)
    assert torch.equal(once, twice)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(solution.controls.sum(), mass)


def test_a_parameter_changed_in_place_before_the_backward_pass_is_noticed() -> None:
    problem = pendulum(5)
    solution = planner_of(problem)(published_pendulum_starts(3))
    with torch.no_grad():
        problem.get_parameter("dynamics.mass").mul_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        solution.controls.sum().backward()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients_the_numbers_are_the_same(mode: Callable[[], Any]) -> None:
    problem, x0 = QUADROTOR.build(5), QUADROTOR.starts(3, 0)
    expected = planner_of(problem)(x0)
    with mode():
        solution = planner_of(problem)(x0)
        inside = planner_of(problem)(x0 * 1.0, params={"dynamics.mass": torch.full((3,), 0.5, dtype=FLOAT)})
        assert not solution.controls.requires_grad
    assert_bitwise(solution, expected)
    assert inside.converged.all()


def test_numbers_that_only_overflow_on_the_way_are_no_matter() -> None:
    """A first step from a wild start leads to infinity; the line search comes back from there, as in the PyTorch path."""
    problem = ControlProblem(
        lambda x, u: x + 0.1 * (x**3) + u,
        lambda x, u: x.square().sum(-1) + 0.01 * u.square().sum(-1),
        horizon=8,
        state_size=3,
        control_size=1,
    )
    x0 = torch.tensor([[1.0, 0.5, -2.0], [3.0, 0.0, 0.0], [60.0, 1.0, 1.0], [2.0, 1.0, 0.5]], dtype=FLOAT)
    native, reference = (planner_of(problem, backend)(x0) for backend in ("native", "torch"))
    assert torch.equal(native.status, reference.status)
    good = reference.converged
    assert good.tolist() == [False, False, False, True]  # from a cost of 1e122
    torch.testing.assert_close(native.controls[good], reference.controls[good], rtol=1e-8, atol=1e-8)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_memory_stays_flat_over_2000_solves() -> None:
    problem, x0 = pendulum(5), published_pendulum_starts(4)
    planner = planner_of(problem)

    def resident() -> float:
        pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    def repeat(count: int) -> None:
        for _ in range(count):
            planner(x0).controls.sum().backward()

    repeat(400)
    before = resident()
    repeat(1600)
    assert resident() - before < 4.0  # MiB: 2.6 kB a solve would be seen
