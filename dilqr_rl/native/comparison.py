"""What was traced, beside the functions themselves: the guard against what a trace doesn't show."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dilqr_rl.consistency import is_rounding
from dilqr_rl.native.codegen.derivatives import cotangents, tangents
from dilqr_rl.native.codegen.evaluate import evaluate, places_of
from dilqr_rl.native.model import Model
from dilqr_rl.native.tracing import UntraceableError

_AGREEMENT = 1e-9  # of values, relative and absolute
_AGREEMENT_OF_DERIVATIVES = 1e-6  # which torch's own formulas keep less well

_AGREEMENT_OF_SECOND = 1e-5  # of second derivatives, relative to the largest

Function = Callable[[Tensor, Tensor], Tensor]
Floats = NDArray[np.float64]


class WithValues(Protocol):
    """x (K, n), u (K, m) and the values of the problem's tensors -> the outputs (K, q), by torch."""

    def __call__(self, x: Tensor, u: Tensor, values: tuple[Tensor, ...]) -> Tensor:
        """The outputs."""
        ...


def compare(model: Model, function: Function, x: Tensor, u: Tensor) -> None:
    """Compare a traced model with what it was traced from, at a few points.

    Args:
        model: the model; its outputs are q numbers.
        function: x (K, n), u (K, m) -> the outputs (K, q), by torch.
        x: states (K, n).
        u: controls (K, m).

    Raises:
        UntraceableError: they differ. A function then depends on what a trace doesn't show: on the other problems of a batch,
            on a random number, on a derivative of its own.
    """
    traced = [model.evaluate(*point) for point in zip(x.tolist(), u.tolist(), strict=True)]
    if not _holds([outputs for outputs, _ in traced], lambda x, u: _by_torch(function, x, u)[0], x, u, _AGREEMENT):
        raise UntraceableError("its functions give other results when they are called again, or with another batch")
    if not _holds([rows for _, rows in traced], lambda x, u: _by_torch(function, x, u)[1], x, u, _AGREEMENT_OF_DERIVATIVES):
        raise UntraceableError(
            "its functions have other derivatives than what they compute: by a custom autograd.Function, say, where they ask "
            "whether a tensor requires_grad, or where PyTorch's own are wrong, as those of torch.func.jvp through a LayerNorm"
        )


def compare_gradients(model: Model, function: WithValues, x: Tensor, u: Tensor, values: Sequence[Tensor]) -> None:
    """Compare what gradients of solutions are made of: derivatives by the parameters, and second derivatives.

    That is, for random lambda, mu and d, the derivatives of  grad_z (lambda^T o) . d + mu^T o  by z = (x, u) and by all values
    that are parameters, where o are the outputs; see model.py.

    Args:
        model: as in `compare`.
        function: as in `compare`, of values, too.
        x: states (K, n).
        u: controls (K, m).
        values: those of the model's that aren't of closures.

    Raises:
        UntraceableError: they differ. A function then has a hook on a tensor, say, that makes its gradient another one.
    """
    q, size = len(model.outputs), x.shape[1] + u.shape[1]
    generator = torch.Generator().manual_seed(2)
    lam, mu, d = (torch.randn(len(x), k, generator=generator, dtype=torch.float64) for k in (q, q, size))
    learnt = [isinstance(own, nn.Parameter) and own.is_floating_point() for own in model.values]
    leaves = tuple(value.detach().clone().requires_grad_(learns) for value, learns in zip(values, learnt, strict=False))
    with torch.enable_grad():
        z = torch.cat((x, u), dim=1).detach().requires_grad_()
        outputs = function(z[:, : x.shape[1]], z[:, x.shape[1] :], leaves)
        wanted = [z, *(leaf for leaf in leaves if leaf.requires_grad)]
        try:
            slope = _gradients((lam * outputs).sum(), [z], create_graph=True)[0]
            right = _gradients((slope * d).sum() + (mu * outputs).sum(), wanted)
        except RuntimeError:  # where torch has no second derivatives, there are only the traced ones
            return
    found = _bracket_gradients(model, {"x": x.detach(), "u": u.detach(), "lam": lam, "mu": mu, "d": d})
    places = [place for place, leaf in enumerate(leaves) if leaf.requires_grad]
    traced = [found[-1], *(found[place].reshape(leaves[place].shape) for place in places)]
    for one, other in zip(traced, right, strict=True):
        expected = other.detach().numpy()
        largest = np.abs(expected[np.isfinite(expected)]).max(initial=0.0)
        if not _close(one, expected, _AGREEMENT_OF_SECOND, 1e-7 + 1e-9 * largest):
            raise UntraceableError(
                "its functions have other derivatives by their parameters, or other second ones, than what they compute: a "
                "hook of a tensor (register_hook), say, which only PyTorch follows"
            )


def _bracket_gradients(model: Model, points: Mapping[str, Tensor]) -> list[Floats]:
    """The derivatives by each value, flat, in the sum over all points, and by z (K, n+m), natively; see `compare_gradients`."""
    graph, outputs = model.outputs[0].graph, model.outputs
    columns = {name: [f"{name}[{i}]" for i in range(numbers.shape[1])] for name, numbers in points.items()}
    leaves = {name: [graph.leaf(text) for text in texts] for name, texts in columns.items()}
    weighted = graph.add_all([one * other for one, other in zip(leaves["lam"], outputs, strict=True)])
    z = [*leaves["x"], *leaves["u"]]
    ((directional,),) = tangents(graph, [weighted], {leaf: [part] for leaf, part in zip(z, leaves["d"], strict=True)}, 1)
    found = cotangents(graph, [(directional, graph.const(1.0)), *zip(outputs, leaves["mu"], strict=True)], stop_at_static=False)
    wanted = [*found.numbers.values(), *(array for _, array in found.arrays), *(a for _, *both in found.matrices for a in both)]
    values = [tensor.detach().reshape(-1).to(torch.float64).numpy() for tensor in model.values]
    gradients, by_z = [np.zeros(value.size) for value in values], np.zeros((len(points["d"]), len(z)))
    names = [name for texts in columns.values() for name in texts]
    for row, point in enumerate(torch.cat([*points.values()], dim=1).tolist()):
        numbers = iter(evaluate(wanted, dict(zip(names, point, strict=True)), values))
        for node, number in zip(found.numbers, numbers, strict=False):
            if not isinstance(node.value, str):
                gradients[node.value[0]][node.value[1]] += number
            elif node in z:
                by_z[row, z.index(node)] = number
        for matrix, _ in found.arrays:
            np.add.at(gradients[matrix.value], places_of(matrix), next(numbers))
        for matrix, *_ in found.matrices:
            np.add.at(gradients[matrix.value], places_of(matrix), next(numbers) @ next(numbers).T)
    return [*gradients, by_z]


def _by_torch(function: Function, x: Tensor, u: Tensor) -> tuple[Floats, Floats]:
    """The outputs (K, q) and their derivatives with respect to (x, u), (K, q (n+m))."""
    n = x.shape[1]
    with torch.enable_grad():
        z = torch.cat((x, u), dim=1).detach().requires_grad_()
        values = function(z[:, :n], z[:, n:])
        try:
            rows = [_gradients(column.sum(), [z])[0] for column in values.unbind(1)]
        except RuntimeError as error:
            raise UntraceableError(f"PyTorch can't differentiate its functions: {error}") from error
    return values.detach().numpy(), torch.cat(rows, dim=1).numpy()


def _gradients(total: Tensor, wanted: Sequence[Tensor], create_graph: bool = False) -> tuple[Tensor, ...]:
    if not total.requires_grad:
        return tuple(map(torch.zeros_like, wanted))
    return torch.autograd.grad(
        total, wanted, retain_graph=True, create_graph=create_graph, allow_unused=True, materialize_grads=True
    )


def _holds(traced: Any, function: Callable[[Tensor, Tensor], Floats], x: Tensor, u: Tensor, tolerance: float) -> bool:
    """Whether they agree with a function's, but for rounding."""
    if _close(traced, function(x, u), tolerance):
        return True
    found = torch.as_tensor(np.asarray(traced, np.float64))
    return is_rounding([found], lambda x, u: [torch.as_tensor(function(x, u))], (x, u), tolerance)


def _close(traced: Any, expected: Floats, tolerance: float, least: float | None = None) -> bool:
    """Whether they agree where both are finite: what a function does at its singular points says nothing."""
    close = np.isclose(traced, expected, rtol=tolerance, atol=tolerance if least is None else least)
    return bool((close | ~np.isfinite(traced) | ~np.isfinite(expected)).all())
