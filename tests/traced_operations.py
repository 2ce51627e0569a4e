"""Operations that users' functions consist of: each a function of x (..., 3) and u (..., 2) with a result like x.

Their arguments are of order one; none comes near a kink or a pole at random.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from problems import FLOAT, normal, seeded_network
from torch import Tensor, nn

Operation = Callable[[Tensor, Tensor], Tensor]
V = torch.tensor([0.5, -1.0, 2.0], dtype=FLOAT)
M = normal(3, 3, seed=1)
INDEX, MASK = torch.tensor([2, 0, 0]), torch.tensor([True, False, True])
ORDER = torch.tensor([2, 0, 1])  # each once: of places that are scattered to twice torch has no right derivative
OFFSET = math.pi / 3


def spread(number: Tensor) -> Tensor:
    """A number per point as three equal ones."""
    return number.unsqueeze(-1).expand(*number.shape, 3)


def above(x: Tensor) -> Tensor:
    """At least one and a half."""
    return 1.5 + x * x


def first(u: Tensor) -> Tensor:
    return u[..., :1]


ARITHMETIC: dict[str, Operation] = {
    "numbers on the right": lambda x, u: ((x + 2) * 3 - 1.5) / 4,
    "numbers on the left": lambda x, u: 2 - x + 1.5 * x + 1 / (3 + x * x),
    "methods": lambda x, u: x.add(1.0).sub(first(u), alpha=2).mul(0.5).div(3.0),
    "functions": lambda x, u: torch.rsub(torch.sub(torch.add(x, V, alpha=0.5), torch.mul(x, V)), 1.0),
    "division": lambda x, u: torch.true_divide(x, 2 + V) + torch.div(first(u), above(x)),
    "negation": lambda x, u: -x * V + torch.neg(x).negative() * (+x),
    "remainder": lambda x, u: (x + OFFSET) % 1.7 - torch.remainder(x, 2.3) + torch.fmod(x, 1.9),
    "fused": lambda x, u: torch.addcmul(x, x, V, value=0.5) + torch.addcdiv(x, V, above(x)) + torch.lerp(x, V, 0.3),
    "integer tensors": lambda x, u: x * torch.tensor([1, 2, 3]) + torch.tensor(2) - INDEX,
    "booleans": lambda x, u: x * (x > 0.1) + (x < -0.2).to(x.dtype) * first(u),
    "scalars of NumPy": lambda x, u: np.float64(0.3) * x * np.float64(2.0) + float(np.pi),
    "other sizes": lambda x, u: x * first(u) + x[..., :1] * V + x.new_tensor(0.3),
    "hypot": lambda x, u: torch.hypot(x, 1 + first(u) ** 2),
    "degrees": lambda x, u: torch.deg2rad(30 * x) + torch.rad2deg(0.01 * x),
}
POWERS: dict[str, Operation] = {
    "squares": lambda x, u: x**2 + x.square() + x.pow(2.0) + torch.pow(x, 3) + pow(first(u), 3),
    "higher": lambda x, u: 0.1 * x**5 + 0.1 * x**4 + x**0 + x**1,
    "negative": lambda x, u: above(x) ** -1 + above(x).pow(-2) + 1 / above(x) ** 3,
    "real": lambda x, u: above(x) ** 1.5 + torch.pow(above(x), 0.3) + above(x) ** 0.5 + above(x) ** -0.5,
    "tensors": lambda x, u: above(x) ** (0.5 * first(u)) + x ** torch.tensor(2) + above(x).pow(V),
    "of a number": lambda x, u: 2**x + torch.pow(1.3, x) + 0.5 ** first(u),
    "exp": lambda x, u: torch.exp(-x * x) + x.exp2() + torch.expm1(x),
    "log": lambda x, u: above(x).log() + torch.log1p(x * x) + above(x).log2() + above(x).log10(),
    "roots": lambda x, u: above(x).sqrt() + torch.rsqrt(above(x)) + above(x).reciprocal(),
    "xlogy": lambda x, u: (
        torch.xlogy(x, above(first(u))) + torch.special.xlogy(first(u), above(x)) + torch.special.xlog1py(x, x * x)
    ),
    "logaddexp": lambda x, u: torch.logaddexp(x, V) + torch.logsumexp(x, dim=-1, keepdim=True),
    "erf": lambda x, u: torch.erf(x) + torch.erfc(first(u)),
}
TRIGONOMETRY: dict[str, Operation] = {
    "sin, cos": lambda x, u: torch.sin(x) * u[..., 1:].cos() + (x + V).sin(),
    "tan": lambda x, u: torch.tan(0.3 * x),
    "asin, acos": lambda x, u: torch.asin(0.4 * x.sin()) + torch.arccos(0.4 * x.cos()),
    "atan": lambda x, u: x.atan() + torch.arctan(first(u)),
    "atan2": lambda x, u: torch.atan2(x, above(first(u))) + torch.arctan2(2 + x.cos(), x),
    "hyperbolic": lambda x, u: 0.3 * (x.sinh() + torch.cosh(x)) + x.tanh(),
    "inverse hyperbolic": lambda x, u: x.asinh() + torch.acosh(above(x)) + torch.atanh(0.4 * x.sin()),
}
PIECEWISE: dict[str, Operation] = {
    "abs": lambda x, u: x.abs() * x + torch.abs(first(u)).pow(3),
    "sign": lambda x, u: torch.sign(x) * x.square() + torch.sgn(x) * x**2,
    "where": lambda x, u: torch.where(x > 0.1, x * x, x.sin()) + torch.where(x <= first(u), x, 0.5) * x,
    "comparisons": lambda x, u: torch.where(x >= V, x, 2 * x) + torch.where(x < -V, 0.3, x) + torch.where(x == V, V, x * x),
    "logic": lambda x, u: (
        torch.where(((x > -1) & (x < 1)) | ~(x != V), x * x, V)
        + torch.where(torch.logical_or(x > 2, torch.logical_not(torch.logical_and(x < 1, x > -1))), x, x**2)
    ),
    "method where": lambda x, u: (x * x).where(x.gt(0), torch.zeros_like(x)) + x.where(torch.lt(x, 5), V),
    "masked_fill": lambda x, u: x.masked_fill(x < -0.2, 0.7) * x + (x**2).masked_fill(MASK, 0.0),
    "clamp": lambda x, u: torch.clamp(x, -0.37, 0.41) * x + x.clamp(min=-0.21) + x.clip(max=0.33) * x,
    "clamp to tensors": lambda x, u: (
        torch.clamp(x, -V.abs(), V.abs()) + x.clamp_min(0.1 * first(u)) + torch.clamp(x, max=V) ** 2
    ),
    "minimum, maximum": lambda x, u: torch.minimum(x, V) + torch.maximum(x, first(u)) + torch.max(x, -V) * torch.min(x, 2 * V),
    "fmin, fmax": lambda x, u: torch.fmin(x, V) + torch.fmax(x, first(u)),
    "amax, amin": lambda x, u: spread(torch.amax(x, dim=-1) * x.amin(-1)) + x.amax(-1, keepdim=True),
    "max over a dim": lambda x, u: spread(x.max(-1).values + torch.min(x, dim=-1)[0] ** 2),
    "rounding": lambda x, u: x * (0.1 * torch.floor(3 * x) + 0.1 * x.ceil() + 0.1 * (2 * x).round() + 0.1 * x.trunc()),
    "finite": lambda x, u: torch.where(torch.isfinite(x) & ~torch.isnan(x), x * x, torch.zeros_like(x)),
}
REDUCTIONS: dict[str, Operation] = {
    "sum": lambda x, u: spread(x.sum(-1)) + torch.sum(x * x, dim=(-1,), keepdim=True) + sum(x.unbind(-1)).unsqueeze(-1),
    "mean": lambda x, u: spread((x * x).mean(dim=-1)) + x.sin().mean(-1, keepdim=True),
    "prod": lambda x, u: spread((2 + x).prod(-1)),
    "cumprod": lambda x, u: torch.cumprod(1 + x, dim=-1) + x.sin().cumprod(-1),
    "cumsum": lambda x, u: torch.cumsum(x * x, dim=-1) + x.sin().cumsum(-1),
    "norm": lambda x, u: spread((x + V).norm(dim=-1)) + torch.norm(u + 1.0, dim=-1, keepdim=True),
    "linalg.norm": lambda x, u: spread(torch.linalg.norm(x + V, dim=-1) + torch.linalg.vector_norm(x * x, ord=1, dim=-1)),
    "largest": lambda x, u: spread(torch.linalg.vector_norm(x, ord=math.inf, dim=-1)) * x,
    "var": lambda x, u: spread(x.var(-1) + torch.var(x, dim=-1, correction=0) + (x + V).std(-1)),
    "with the mean": lambda x, u: (
        sum(torch.var_mean(x, dim=-1, keepdim=True)) * x + sum(torch.std_mean(x + V, -1, keepdim=True))
    ),
    "over two": lambda x, u: (
        spread((x.unsqueeze(-1) * u.unsqueeze(-2)).square().sum((-2, -1))) + x.unsqueeze(-2).mean((-2, -1)).unsqueeze(-1)
    ),
    "vecdot": lambda x, u: spread(torch.linalg.vecdot(x, x + V)),
}
INDEXING: dict[str, Operation] = {
    "one": lambda x, u: spread(x[..., 0] * x[..., -1] + u[..., 1]),
    "slices": lambda x, u: x[..., 1:].sum(-1, keepdim=True) * x[..., :-1].prod(-1, keepdim=True) + x[..., ::2][..., 1:] * x,
    "new axes": lambda x, u: (x[..., None, :] * x[..., :, None])[..., 0, :] + x[..., None][..., 0],
    "lists": lambda x, u: x[..., [2, 0, 1]] * x[..., [0, 0, -1]],
    "index tensors": lambda x, u: x[..., INDEX] * x.index_select(-1, INDEX) + x[..., INDEX.flip(0)],
    "masks": lambda x, u: x[..., MASK].sum(-1, keepdim=True) * x[..., torch.tensor([False, True, False])],
    "two lists": lambda x, u: (x.unsqueeze(-1) * x.unsqueeze(-2))[..., [0, 1, 2], [2, 2, 0]],
    "narrow, select": lambda x, u: x.narrow(-1, 1, 2).sum(-1, keepdim=True) * spread(x.select(-1, 2)),
    "gather": lambda x, u: torch.gather(x, -1, INDEX.expand(x.shape)) * torch.take_along_dim(x, INDEX.expand(x.shape), dim=-1),
    "scatter": lambda x, u: (
        torch.zeros_like(x).scatter(-1, ORDER.expand(x.shape), x * x) + x.scatter(-1, INDEX[:1].expand(first(x).shape), 0.3)
    ),
    "scatter_add": lambda x, u: x.scatter_add(-1, (INDEX // 2).expand(x.shape), x * x) * first(u),
    "fill, copy": lambda x, u: x.index_fill(-1, INDEX[:1], 0.3) * x + x.index_copy(-1, INDEX[:2], u * u),
    "unbind": lambda x, u: torch.stack([a * b for a, b in zip(x.unbind(-1), x.flip(-1).unbind(-1), strict=True)], -1),
    "split": lambda x, u: torch.cat([x.split([1, 2], dim=-1)[1], u.split(1, dim=-1)[0]], dim=-1) * x,
    "chunk": lambda x, u: torch.cat((torch.chunk(x, 3, dim=-1)[2], x.tensor_split((1,), dim=-1)[1]), -1) * x,
    "diagonal": lambda x, u: (x.unsqueeze(-1) * x.unsqueeze(-2)).diagonal(dim1=-2, dim2=-1) + torch.diag_embed(x).sum(-1),
    "triangles": lambda x, u: (torch.tril(x.unsqueeze(-1) * x.unsqueeze(-2)) + (x.unsqueeze(-1) * V).triu(1)).sum(-1),
}
SHAPES: dict[str, Operation] = {
    "stack": lambda x, u: torch.stack((x, x * x, x.sin()), dim=-1).sum(-1) + torch.stack([x, V.expand_as(x)], -2)[..., 0, :],
    "cat": lambda x, u: torch.cat((x[..., :1], u * u), dim=-1) + torch.concat([u, x[..., 2:]], -1),
    "reshape": lambda x, u: (
        (x.reshape(*x.shape[:-1], 3, 1) * V.reshape(1, 3)).flatten(-2)[..., 2:5] + x.view(*x.shape[:-1], 1, 3)[..., 0, :]
    ),
    "unflatten": lambda x, u: torch.cat((x, x * x), -1).unflatten(-1, (2, 3)).prod(-2),
    "transpose": lambda x, u: (x.unsqueeze(-1) * V).transpose(-1, -2)[..., 1] + (x.unsqueeze(-1) * V).mT[..., 0, :] + M.T[0],
    "swap": lambda x, u: (x.unsqueeze(-1) * V).swapaxes(-2, -1)[..., 2, :] * torch.movedim(x.unsqueeze(-1), -1, -2)[..., 0, :],
    "permute": lambda x, u: M.permute(1, 0)[2] * x + M.t()[1],
    "squeeze": lambda x, u: x.unsqueeze(-1).unsqueeze(-1).squeeze(-1).squeeze(-1) * x + first(u).squeeze(-1).unsqueeze(-1),
    "expand": lambda x, u: first(u).expand_as(x) * x + torch.broadcast_to(V, x.shape) + V.expand(x.shape[-1]),
    "repeat": lambda x, u: V[:1].repeat(3) * x + torch.tile(V[:1], (3,)) + torch.repeat_interleave(V[1:2], 3) * x,
    "flip, roll": lambda x, u: x.flip(-1) * torch.roll(x, 1, dims=-1) + torch.flip(x, dims=(-1,)),
    "pad": lambda x, u: F.pad(u * u, (0, 1)) + F.pad(x[..., 1:], (1, 0), value=0.5),
}
CONSTANTS: dict[str, Operation] = {
    "like": lambda x, u: torch.zeros_like(x) + torch.ones_like(x) * x + torch.full_like(x, 0.3) * x,
    "new": lambda x, u: x.new_zeros(x.shape) + x.new_ones(3) * x + x.new_full((3,), 0.2) + x.new_tensor([0.1, 0.2, 0.3]) * x,
    "given": lambda x, u: (
        torch.zeros(3, dtype=x.dtype) + torch.ones(x.shape[-1], dtype=FLOAT) * x + torch.full((3,), 0.4, dtype=FLOAT)
    ),
    "ranges": lambda x, u: (
        torch.arange(3, dtype=x.dtype) * x + torch.linspace(0.0, 1.0, 3, dtype=x.dtype) + torch.arange(1, 4) * x
    ),
    "matrices": lambda x, u: (
        x @ torch.eye(3, dtype=x.dtype) + x @ torch.diag(V) + x @ torch.tensor([[0.0, 1, 0], [0, 0, 1], [1, 0, 0]], dtype=FLOAT)
    ),
    "of NumPy": lambda x, u: torch.as_tensor(np.array([0.1, 0.2, 0.3])) * x + torch.from_numpy(np.ones(3)) * x,
    "closures": lambda x, u: x * V + (M @ V) * x + V.sin().sum() + M[1],
}


def inertia(x: Tensor) -> Tensor:
    """A mass matrix, say, of numbers within 2."""
    q = torch.cat((x, x), -1)[..., :3]
    return M.T @ M + 3.0 * torch.eye(3, dtype=x.dtype) + 0.1 * q.sin().unsqueeze(-1) * q.cos().unsqueeze(-2)


ALGEBRA: dict[str, Operation] = {
    "x @ M": lambda x, u: x @ M + x @ M.mT + torch.matmul(x, M.T),
    "M @ x": lambda x, u: (M @ x.unsqueeze(-1)).squeeze(-1) + torch.matmul(M, x[..., None])[..., 0],
    "of states": lambda x, u: ((x.unsqueeze(-1) * V) @ x.unsqueeze(-1)).squeeze(-1) + x @ V.unsqueeze(-1),
    "dot": lambda x, u: spread(x @ V) + (x.unsqueeze(-2) @ x.unsqueeze(-1)).squeeze(-1),
    "einsum": lambda x, u: torch.einsum("ij,...j->...i", M, x) + torch.einsum("...i,ij,...j->...", x, M, x).unsqueeze(-1),
    "outer": lambda x, u: torch.einsum("...i,...j->...ij", x, u).sum(-1) + (x.unsqueeze(-1) @ u.unsqueeze(-2))[..., 0],
    "bmm": lambda x, u: torch.bmm(x.reshape(-1, 1, 3), M.expand(x[..., 0].numel(), 3, 3)).reshape(x.shape),
    "of constants": lambda x, u: torch.mv(M, V) * x + torch.dot(V, V) + torch.outer(V, V)[0] * x + torch.mm(M, M)[1] * x,
    "cross": lambda x, u: torch.linalg.cross(x, V.expand_as(x)) + torch.cross(x, x.flip(-1), dim=-1),
    "linear": lambda x, u: F.linear(x, M) + F.linear(x * x, M, V),
    "solve": lambda x, u: (
        torch.linalg.solve(inertia(x), x)
        + torch.linalg.solve(inertia(x), torch.stack((x, V.expand_as(x)), -1))[..., 1]
        + torch.linalg.solve(inertia(x), x.unsqueeze(-2), left=False).squeeze(-2)
    ),
    "solve, small": lambda x, u: torch.cat(
        (torch.linalg.solve(inertia(x)[..., :2, :2], u), torch.linalg.solve(2 + x[..., :1, None], u[..., :1])), -1
    ),
    "inv": lambda x, u: (
        (torch.linalg.inv(inertia(x)) @ x.unsqueeze(-1)).squeeze(-1) + inertia(u)[..., :2, :2].inverse().sum(-1)[..., [0, 1, 1]]
    ),
    "det": lambda x, u: spread(torch.linalg.det(inertia(x)) + inertia(x)[..., 1:, 1:].logdet()) * x,
    "tensordot": lambda x, u: torch.tensordot(x, M, dims=1),
}
ACTIVATIONS: dict[str, Operation] = {
    "relu": lambda x, u: F.relu(x) + torch.relu(x - first(u)) + nn.ReLU()(x) ** 2,
    "leaky_relu": lambda x, u: F.leaky_relu(x, 0.1) + nn.LeakyReLU()(x),
    "elu": lambda x, u: F.elu(x) + F.elu(x, alpha=0.5) + F.selu(x),
    "silu": lambda x, u: F.silu(x) + nn.SiLU()(first(u)),
    "gelu": lambda x, u: F.gelu(x) + F.gelu(x + V, approximate="tanh"),
    "softplus": lambda x, u: F.softplus(x) + nn.Softplus(beta=2.0)(x),
    "sigmoid": lambda x, u: torch.sigmoid(x) + x.sigmoid() * F.logsigmoid(x),
    "tanh": lambda x, u: nn.Tanh()(x) + F.tanhshrink(x) + F.softsign(x),
    "hard": lambda x, u: F.hardtanh(x, -0.6, 0.7) + F.relu6(x) + F.hardswish(x),
    "mish": lambda x, u: F.mish(x),
    "softmax": lambda x, u: torch.softmax(x, dim=-1) + F.softmax(2 * x, -1) + F.log_softmax(x, dim=-1),
    "layer_norm": lambda x, u: F.layer_norm(x + V, (3,)) + F.layer_norm(x - V, (3,), weight=V, bias=V),
    "instance_norm": lambda x, u: F.instance_norm((x + V).reshape(-1, 1, 3)).reshape(x.shape) + torch.sinc(x),
    "normalize": lambda x, u: F.normalize(x + V, dim=-1),
    "losses": lambda x, u: (
        F.mse_loss(x, V.expand_as(x), reduction="none") + F.smooth_l1_loss(x, V.expand_as(x), reduction="none")
    ),
    "huber": lambda x, u: (
        F.huber_loss(x, V.expand_as(x), reduction="none", delta=0.7) + F.l1_loss(x, V.expand_as(x), reduction="none")
    ),
    "dropout when evaluating": lambda x, u: F.dropout(x * x, 0.5, training=False),
}
NETWORK = nn.Sequential(seeded_network(5, 4, 3, seed=6), nn.LayerNorm(3, dtype=FLOAT), nn.Identity()).requires_grad_(False)


def in_place(x: Tensor, u: Tensor) -> Tensor:
    y = x.clone()
    y += 1.0
    y *= x
    y[..., 0] = u[..., 0] * x[..., 1]
    y[..., 1:] -= x[..., :2] ** 2
    y[..., 2].mul_(2.0)
    return y.add_(V)


def diagonal_written(x: Tensor, u: Tensor) -> Tensor:
    y = x.unsqueeze(-1) * x.unsqueeze(-2)
    y.diagonal(dim1=-2, dim2=-1).add_(first(u))
    return y @ V


def written(x: Tensor, u: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    y[..., :2] = u
    y[..., 2] = 0.5
    y[..., [0, 1]] = x[..., [2, 0]] * y[..., [0, 1]]
    y[..., MASK] += x[..., MASK] ** 2
    return y


def runge_kutta(x: Tensor, u: Tensor) -> Tensor:
    def slope(x: Tensor) -> Tensor:
        p, v, w = x.unbind(dim=-1)
        return torch.stack((v, -torch.sin(p) + u[..., 0] - 0.1 * v * abs(v), u[..., 1] - w), dim=-1)

    total, h = torch.zeros_like(x), 0.1
    k = slope(x)
    for weight, ahead in ((1, h / 2), (2, h / 2), (2, h), (1, 0.0)):
        total = total + weight / 6 * k
        k = slope(x + ahead * k)
    return total


def shape_dependent(x: Tensor, u: Tensor) -> Tensor:
    if x.shape[-1] != 3 or x.ndim < 1 or x.dtype != FLOAT:
        raise ValueError("x: expected three numbers")
    return x.reshape(-1, 3).mul(V).reshape(x.shape) * (1.0 if u.size(-1) == 2 else 0.0) + len(u.shape) * 0


STATEMENTS: dict[str, Operation] = {
    "in place": in_place,
    "written": written,
    "written on the diagonal": diagonal_written,
    "loops and functions": runge_kutta,
    "shapes": shape_dependent,
    "conversions": lambda x, u: x.to(torch.float64) * x.double() + V.to(x) * x.type_as(x).clone().contiguous(),
    "detached constants": lambda x, u: V.detach() * x + V.clone().detach() * x,
    "networks": lambda x, u: NETWORK(torch.cat((x, u), dim=-1)),
    "torch.func": lambda x, u: (
        torch.func.vmap(torch.func.grad(lambda row: (row**3).sum()))(x.reshape(-1, 3)).reshape(x.shape)
        + torch.func.vmap(torch.func.jacrev(lambda row: row * row.sum()))(x.reshape(-1, 3)).sum(-1).reshape(x.shape)
    ),
    "detached in place": lambda x, u: torch.sin(x).clone().detach_() * x,
    "index_add": lambda x, u: torch.zeros_like(x).index_add(-1, INDEX, x * x),
    "copy": lambda x, u: torch.empty_like(x).fill_(0.3) + torch.zeros_like(x).copy_(x**2),
}
FAMILIES = {
    name.lower(): table
    for name, table in globals().items()
    if name.isupper() and isinstance(table, dict) and all(callable(part) for part in table.values())
}
OPERATIONS = {f"{family}, {name}": operation for family, table in FAMILIES.items() for name, operation in table.items()}
# Every elementwise operation once, on two numbers within 1.5: what a compiler has to do with.
NUMBERS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "quotient": lambda a, b: (2 - a) / (2 + b * b) - b,
    "remainder": lambda a, b: (a + OFFSET) % 1.7 + torch.fmod(b, 1.9),
    "powers": lambda a, b: a**3 + (2 + b) ** -1.5 + (2 + a) ** b + 1.3**a + a**4 + (2 + a) ** -2,
    "exp": lambda a, b: torch.exp(-a * b) + a.exp2() + torch.expm1(b),
    "log": lambda a, b: torch.log(2 + a) + torch.log1p(b * b) + (2 + a).log2() + (2 + b).log10(),
    "roots": lambda a, b: torch.sqrt(2 + a) + torch.rsqrt(2 + b) + torch.hypot(a, 1 + b) + (2 + a).reciprocal(),
    "erf": lambda a, b: torch.erf(a) + torch.erfc(b),
    "trigonometry": lambda a, b: a.sin() * b.cos() + torch.tan(0.3 * a),
    "inverse": lambda a, b: torch.asin(0.4 * a.sin()) + torch.acos(0.4 * b) + a.atan() + torch.atan2(a, 2 + b),
    "hyperbolic": lambda a, b: a.sinh() + torch.cosh(b) + a.tanh(),
    "inverse hyperbolic": lambda a, b: torch.asinh(a) + torch.acosh(3 + b) + torch.atanh(0.4 * a),
    "abs, sign": lambda a, b: a.abs() * b + torch.sign(a) * b**2,
    "where": lambda a, b: torch.where((a > 0.1) & (b < 0.3) | ~(a >= b) & (a != b), a * b, torch.where(a <= -b, 0.3, b)),
    "booleans": lambda a, b: (
        a * (b > 0.1) + (a == b).to(a.dtype) + (a < 0.2).double() * b + torch.logical_xor(a > 0, b > 0) * b
    ),
    "clamp": lambda a, b: torch.clamp(a, -0.37, 0.41) * b + b.clamp(min=-0.21) + torch.maximum(a, b) + torch.fmin(a, b) ** 2,
    "rounding": lambda a, b: a * (0.1 * torch.floor(3 * b) + 0.1 * a.ceil() + 0.1 * (2 * b).round() + 0.1 * a.trunc()),
    "finite": lambda a, b: torch.where(torch.isfinite(a) & ~torch.isnan(b), a * b, 0.0),
    "activations": lambda a, b: F.gelu(a) + F.softplus(b) + F.silu(a) + F.elu(b) + F.mish(a) + F.relu(b),
}
