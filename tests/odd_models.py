"""Random models in the style of hurried people: booleans, views, writes in place, caches, counters, containers that grow.

Each is a Python function, drawn from lines that do something odd to a state. Whatever a planner makes of it natively has to be
what PyTorch makes of it, or to be said: `python tests/odd_models.py 1000` tries a thousand of them, the suite some.
"""

from __future__ import annotations

import logging
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dilqr_rl import ILQR, ControlProblem, ILQROptions, QuadraticCost, Solution
from dilqr_rl.native import programs
from dilqr_rl.native.audit import Audit

FLOAT = torch.float64
BACKENDS: tuple[Literal["auto"], Literal["torch"]] = ("auto", "torch")
N = 3  # states and controls

# Each line changes y, a tensor (..., 3) of the function's own; z is scratch, x and u are the arguments, s the model.
LINES = (
    "y = y + 0.1 * ((x > 0) + (x > 0.1)).to(x.dtype)",
    "y = y + 0.1 * ((x > 0) * (u < 0.2)).sum(-1, keepdim=True) * x",
    "y = y + 0.05 * (x > 0.1).cumsum(-1) * u",
    "y = y + 0.1 * (x > 0.2).float()",
    "y = y + 0.1 * torch.where(x > 0, x > 0.5, x < -0.5).to(x.dtype)",
    "y = y + 0.1 * (x > 0).any(-1, keepdim=True) * x",
    "y = y + 0.1 * ~(x > 0.3)",
    "y = y + 0.1 * (x.sign() == u.sign()).double()",
    "y = y + 0.1 * (x > 0).to(torch.int64) // 2",
    "y = y + 0.1 * ((x > 0) & (u > 0)).sum(-1, keepdim=True)",
    "y = y + 0.1 * ((x > 0) ^ (u > 0))",
    "y = y + 0.1 * (x > x.mean(-1, keepdim=True)).prod(-1, keepdim=True)",
    "y = y + (x > 0).sum(-1, keepdim=True) / 30",
    "y = y + 0.1 * torch.isfinite(x).sum(-1, keepdim=True) * x",
    "y = y - 0.1 * (x > 0).double().argmax(-1, keepdim=True)",
    "y[..., 0] = y[..., 1] * 0.5",
    "y[..., :2] += 0.1 * u[..., 1:]",
    "z = y[..., 1]; z.mul_(0.9)",
    "z = y[..., 1:]; z.clamp_(max=0.4)",
    "y.unsqueeze(-1).clamp_(min=-0.3)",
    "z = y.view(*y.shape[:-1], 3, 1); z.tanh_()",
    "z = y.reshape(*y.shape[:-1], 1, 3); z.clamp_(max=0.5)",
    "z = y.transpose(-1, -1); z.mul_(0.95)",
    "z = (y.unsqueeze(-1) * s.row); z.transpose(-1, -2).contiguous().clamp_(max=0.1); y = y + 0.1 * z.sum(-1)",
    "z = (y.unsqueeze(-1) * s.row); w = z.transpose(-1, -2).contiguous(); w.clamp_(max=0.1); y = y + 0.1 * w.sum(-2)",
    "z = (y.unsqueeze(-1) * s.row); w = z.transpose(-1, -2).reshape(*y.shape[:-1], 6); w.clamp_(max=0.1); y = y + 0.1 * z.sum(-1)",
    "z = (y.unsqueeze(-1) * s.row); w = z.flatten(-2); w.clamp_(max=0.1); y = y + 0.1 * z.sum(-1)",
    "z = y.to(y.device, copy=True); z.clamp_(max=0.1); y = y + 0.1 * z",
    "z = y.to(y.dtype); z.clamp_(max=0.4)",
    "z = y.clone(); z.mul_(2.0); y = y + 0.05 * z",
    "z = y.detach(); z.clamp_(max=0.5)",
    "z = y.detach().clone(); z.clamp_(max=0.5); y = y + 0.1 * z",
    "z = y.data; z.clamp_(max=0.5)",
    "z = torch.zeros_like(y); z[..., 0] = x[..., 2]; z[..., 1:] = 0.2 * u[..., :2]; y = y + 0.1 * z",
    "z = torch.empty_like(y); z.copy_(x); z[..., 0].zero_(); y = y + 0.1 * z",
    "z = y.expand_as(y); z = z * 1.0; z.mul_(0.3); y = y + z",
    "a, b, c = y.unbind(-1); a.mul_(0.8); y = y + 0.1 * torch.stack((c, a, b), -1)",
    "a, b = y.split((1, 2), -1); b.mul_(0.8)",
    "a, b = y.chunk(2, -1); a.add_(0.01)",
    "z = y.movedim(-1, 0).contiguous(); z.index_put_((torch.tensor([0, 0]),), 0.1 * torch.relu(x).movedim(-1, 0)[:1], accumulate=True); y = z.movedim(0, -1)",
    "z = y.movedim(-1, 0).clone(); z[torch.tensor([2, 0])] = z[torch.tensor([0, 2])]; y = z.movedim(0, -1)",
    "z = y.clone(); z.index_add_(-1, torch.tensor([1, 1]), 0.1 * u[..., :2]); y = z",
    "z = y.flip(-1); z.mul_(0.1); y = y + z",
    "z = y.roll(1, -1); z.mul_(0.1); y = y + z",
    "z = y.masked_fill(x > 0.5, 0.3); y = y + 0.1 * z",
    "y.masked_fill_(x > 2.0, 0.3)",
    "z = s.hidden(y); z.unsqueeze(-1).clamp_(min=0.0); y = y + 0.1 * s.out(z)",
    "z = s.hidden(y); z.clamp_(min=0.0); y = y + 0.1 * s.out(z)",
    "z = s.hidden(y); w = z[..., :20]; w.mul_(0.5); y = y + 0.1 * s.out(z)",
    "z = s.hidden(y); w = z.view(z.shape); w.relu_(); y = y + 0.1 * s.out(z)",
    "y = y + 0.1 * s.out(torch.relu_(s.hidden(y)))",
    "z = s.net(y); z += y; y = y + 0.1 * z",
    "y = s.cached(y.shape[:-1], y.dtype) * y",
    "y = y * s.share(y.dtype)",
    "s.count += 1; y = y + 0.0",
    "s.seen.append(float(len(s.seen))); y = y + 0.0",
    "s.last = y; y = y * 0.99",
    "y = y + 0.1 * s.table[(1,)] * x",
    "y = y + 0.01 * sum(s.terms)",
    "y = y + 0.1 * s.setting['gain'] * x",
    "y = y + (0.1 if s.flag else -0.1) * x",
    "y = y + 0.1 * torch.as_tensor(s.array, dtype=y.dtype)",
    "y = y + 0.1 * s.mask * x",
    "y = y + 0.1 * x[..., s.order]",
    "y = y + 0.1 * torch.where(s.mask, u, 0.3 * u)",
    "y = torch.where((x.abs() > 3.0).any(-1, keepdim=True), 0.5 * y, y)",
    "y = y + 0.1 * torch.clamp(x, min=s.low, max=0.6)",
    "y = y + 0.1 * torch.maximum(x, u) - 0.1 * torch.minimum(x, u)",
    "y = y + 0.05 * x.max(-1, keepdim=True).values",
    "y = y + 0.05 * torch.round(10 * s.gain) / 10",
    "y = y + 0.05 * torch.floor(x)",
    "y = y + 0.05 * (x % 0.7)",
    "y = y + 0.05 * torch.special.expit(x) * s.gain",
    "with torch.no_grad(): z = 0.1 * x.square()\n    y = y + z",
    "y = y + 0.1 * s.lookup(u)",
    "y = y + 0.1 * s.hooked(s.gain) * x",
    "y = y + 0.1 * s.gain.detach() * x",
    "y = y + 0.1 * s.gain * s.hooked(y).sin()",
)
ENDS = ("return y", "y = y * 1.0; return y", "return torch.stack(y.unbind(-1), -1)", "return y.clone()", "return (y, y)[0]")


class Model(nn.Module):
    """What a function's lines use, and the function."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        chosen = random.Random(seed)
        torch.manual_seed(seed)
        self.lines = [chosen.choice(LINES) for _ in range(chosen.randint(1, 4))]
        start = chosen.choice(("y = 0.9 * x + u", "y = 0.9 * x; y += u", "y = x.clone(); y.mul_(0.9).add_(u)"))
        body = "\n    ".join((start, *self.lines, chosen.choice(ENDS)))
        self.source = f"def function(s, x, u):\n    {body}\n"
        names: dict[str, Any] = {"torch": torch}
        exec(self.source, names)
        self._function: Callable[..., Tensor] = names["function"]
        self.hidden, self.out = nn.Linear(3, 40, dtype=FLOAT), nn.Linear(40, 3, dtype=FLOAT)
        self.net = nn.Sequential(nn.Linear(3, 3, dtype=FLOAT), nn.ReLU(inplace=True))
        self.gain = nn.Parameter(torch.tensor(0.33, dtype=FLOAT))
        self.register_buffer("row", torch.tensor([1.0, 2.0], dtype=FLOAT))
        self.register_buffer("mask", torch.tensor([True, False, True]))
        self.register_buffer("order", torch.tensor([2, 0, 1]))
        self.array, self.table, self.terms = [0.1, 0.2, 0.3], {(1,): 0.3}, [0.1, 0.2]
        self.setting, self.flag, self.low = {"gain": 0.3}, True, -0.4
        self.count, self.seen, self.last = 0, [], None
        self._cache: dict[Any, Tensor] = {}

    def cached(self, shape: Any, dtype: torch.dtype) -> Tensor:
        if shape not in self._cache:
            self._cache[shape] = torch.full((*shape, 1), 0.9, dtype=dtype)
        return self._cache[shape]

    def share(self, dtype: torch.dtype) -> Tensor:
        if dtype not in self._cache:
            self._cache[dtype] = torch.tensor([0.9, 0.8, 0.95], dtype=dtype)
        return self._cache[dtype]

    def lookup(self, u: Tensor) -> Tensor:
        return torch.tensor([0.1, -0.2, 0.3], dtype=u.dtype) * u.tanh()

    def hooked(self, y: Tensor) -> Tensor:
        z = 2.0 * y
        if z.requires_grad:
            z.register_hook(lambda gradient: gradient.detach())
        return z

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        return self._function(self, x, u)


CHANGES: tuple[Callable[[Model], Any], ...] = (
    lambda s: s.setting.update(gain=-0.5),
    lambda s: setattr(s, "flag", False),
    lambda s: s.terms.append(0.7),
    lambda s: s.array.__setitem__(1, 0.9),
    lambda s: s.table.update({(1,): -0.8}),
    lambda s: s.mask.data.logical_not_(),
    lambda s: s.order.data.copy_(torch.tensor([0, 1, 2])),
    lambda s: setattr(s, "low", 0.1),
    lambda s: s.net.append(nn.Tanh()),
    lambda s: s.row.mul_(0.5),
)


class Told(logging.Handler):
    """Whether a line in the log said that native code isn't used."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def verdict(seed: int) -> str:
    """What a planner makes of a model: "native", "said", "alike" (the same error from both), or "WRONG: ..." with the model.

    Two solves, with a change of a setting in between. Where "auto" is native, states have to be the function's own rollout, and
    the gradient by the model's parameters that of the PyTorch path's adjoint around the same controls. For every other model
    there is no audit: so it is in use, but for one solve in some hundreds.
    """
    model = Model(seed)
    cost = QuadraticCost([1.0] * 3 + [0.1] * 3, [0.8, -0.6, 1.2, 0.0, 0.0, 0.0])
    problem = ControlProblem(model, cost, horizon=4, state_size=3, control_size=3, u_min=-1.0, u_max=1.0)
    x0 = torch.tensor([[0.3, -0.4, 0.1], [0.0, 0.8, -0.9]], dtype=FLOAT)
    told, logger = Told(), logging.getLogger("dilqr_rl")
    programs._reported.clear()  # what was said of another model is said again
    logger.addHandler(told)
    try:
        kinds = []
        for change in (None, random.Random(seed).choice(CHANGES)):
            if change is not None:
                change(model)
            with without_audit() if seed % 2 else nullcontext():
                kinds.append(_one(problem, model, x0))
            if kinds[-1].startswith("WRONG"):
                return f"{kinds[-1]}\nseed {seed}, {'after a change' if change else 'at first'}\n{model.source}"
    finally:
        logger.removeHandler(told)
    return "said" if any("PyTorch" in line for line in told.lines) else kinds[-1]


@contextmanager
def without_audit() -> Iterator[None]:
    """No look is ever due."""
    due = Audit.due
    Audit.due = lambda *_, **__: False  # type: ignore[method-assign]
    try:
        yield
    finally:
        Audit.due = due  # type: ignore[method-assign]


def _one(problem: ControlProblem, model: Model, x0: Tensor) -> str:
    auto, plain = (ILQR(problem, ILQROptions(backend=backend, max_iterations=60)) for backend in BACKENDS)
    solution, error = _tried(auto, x0)
    if solution is None:
        _, other = _tried(plain, x0)
        return "alike" if other == error else f"WRONG: an error that the PyTorch path doesn't have ({error}, but {other})"
    with torch.no_grad():
        states = [x0]
        for u in solution.controls.detach().unbind(1):
            states.append(model(states[-1].clone(), u.clone()))
        off = (torch.stack(states, 1) - solution.states).abs()
    if not bool((off < 1e-7).all()):
        return f"WRONG: states off by {off.max().item():.1e}"
    return _compared(solution, plain, model, x0)


def _tried(planner: ILQR, x0: Tensor) -> tuple[Solution | None, str]:
    """A solution, or how the ValueError begins."""
    try:
        return planner(x0), ""
    except ValueError as error:
        return None, " ".join(str(error).split()[:6])


def _compared(solution: Solution, plain: ILQR, model: Model, x0: Tensor) -> str:
    """The gradients by the model's parameters, beside those of the PyTorch path's adjoint around the same solution."""
    parts = {name: getattr(solution, name).detach() for name in ("states", "controls", "cost")}
    try:
        right = _gradients(plain.attached(x0, None, replace(solution, **parts)), model)
    except ValueError:  # what autograd refuses has no gradient to compare with
        return "native"
    for (name, _), one, other in zip(model.named_parameters(), _gradients(solution, model), right, strict=True):
        off = (one - other).abs().max().item()
        if not off < 1e-6 * (1.0 + other.abs().max().item()):
            return f"WRONG: the gradient by {name} is off by {off:.1e}"
    return "native"


def _gradients(solution: Solution, model: Model) -> tuple[Tensor, ...]:
    weights = torch.linspace(-1.0, 2.0, solution.states.numel(), dtype=FLOAT).view_as(solution.states)
    loss = (weights * solution.states).sum() + solution.controls.square().sum()
    return torch.autograd.grad(loss, [*model.parameters()], allow_unused=True, materialize_grads=True)


def main(count: int) -> None:
    """Try models, and print what came of them."""
    torch.set_num_threads(1)
    logging.getLogger("dilqr_rl").propagate = False
    found: dict[str, int] = {}
    for seed in range(count):
        result = verdict(seed)
        kind = result.partition(":")[0]
        found[kind] = found.get(kind, 0) + 1
        if kind == "WRONG":
            print(result, flush=True)
        if seed % 100 == 99:
            print(seed + 1, found, flush=True)
    print(found)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
