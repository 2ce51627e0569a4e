"""One step of an environment, compiled or in PyTorch: the numbers of the torch modules, whatever tensors these hold."""

from __future__ import annotations

import copy
import logging
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from problems import FLOAT
from torch import Tensor, nn

from dilqr_rl.native.transition import BAD_ACTION, NOT_FINITE, OUTSIDE, CompiledTransition, compile_transition

LIMITS = np.array([2.0, 3.0])


class Residual(nn.Module):
    """Two physics, a buffer and a small network; the physics neither come first nor in the order of their names."""

    state_size = 2
    control_size = 1

    def __init__(self, as_float: torch.dtype = FLOAT) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.net = nn.Linear(3, 2).to(as_float)
        with torch.no_grad():
            for parameter in self.net.parameters():
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=FLOAT))
        self.register_buffer("drift", torch.tensor([0.1, -0.2], dtype=FLOAT))
        self.stiffness = nn.Parameter(torch.tensor(2.0, dtype=FLOAT))
        self.mass = nn.Parameter(torch.tensor(0.5, dtype=FLOAT))

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        place, speed = x.unbind(-1)
        (force,) = u.unbind(-1)
        moved = torch.stack((place + 0.1 * speed, speed + 0.1 * (force - self.stiffness * place) / self.mass), dim=-1)
        return moved + self.drift + torch.tanh(self.net(torch.cat((x, u), dim=-1)))


class Reward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.tensor([1.0, 2.0], dtype=FLOAT))

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        return -(self.weights * x**2).sum(-1) - u.squeeze(-1) ** 2


def compiled(dynamics: Any, reward: Any, physics: tuple[str, ...] = ("mass", "stiffness")) -> CompiledTransition:
    return compile_transition(dynamics, reward, physics, state_limit=LIMITS, control_limit=4.0)


def in_torch(transition: CompiledTransition) -> CompiledTransition:
    return CompiledTransition(transition._system, transition._limits, None)


@pytest.mark.parametrize("as_float", [torch.float32, FLOAT])
@pytest.mark.parametrize("native", [True, False])
def test_physics_go_to_their_names_and_other_tensors_stay(as_float: torch.dtype, native: bool) -> None:
    dynamics, reward = Residual(as_float), Reward()
    transition = compiled(dynamics, reward)
    assert transition.native
    generator = np.random.default_rng(1)
    physics, x, actions = generator.uniform(0.5, 1.5, (5, 2)), generator.normal(size=(5, 2)), generator.uniform(-1, 1, (5, 1))
    used = transition if native else in_torch(transition)
    found = used(used.numbers(physics), x, actions)
    for row in range(5):
        twin = copy.deepcopy(dynamics).to(FLOAT)
        with torch.no_grad():
            twin.mass.fill_(physics[row, 0])
            twin.stiffness.fill_(physics[row, 1])
            state, control = torch.from_numpy(x[row]), torch.from_numpy(4.0 * actions[row])
            expected, value = twin(state[None], control[None])[0], reward(state[None], control[None])[0]
        np.testing.assert_allclose(found.states[row], expected, rtol=0.0, atol=1e-12)
        assert found.rewards[row] == pytest.approx(value.item(), abs=1e-12)
    np.testing.assert_array_equal(found.observations, found.states.clip(-LIMITS, LIMITS).astype(np.float32))
    assert dynamics.net.weight.dtype == as_float


@pytest.mark.parametrize("native", [True, False])
def test_flags_tell_what_is_wrong_where(native: bool) -> None:
    transition = compiled(Residual(), Reward())
    used = transition if native else in_torch(transition)
    x = np.array([[0.0, 0.0], [0.0, 0.0], [5.0, 0.0], [1e308, 1e308]])
    numbers = used.numbers(np.array([[0.5, 2.0]] * 3 + [[1e-308, 2.0]]))
    with np.errstate(all="ignore"):
        found = used(numbers, x, np.array([[0.1], [np.nan], [0.0], [0.0]]))
    assert found.flags.tolist() == [0, BAD_ACTION, OUTSIDE, found.flags[3]]
    assert found.flags[3] & NOT_FINITE


def test_one_row_of_numbers_serves_all_states_and_copies_go_on_alike() -> None:
    transition = compiled(Residual(), Reward())
    x, actions = np.random.default_rng(0).normal(size=(7, 2)), np.zeros((7, 1))
    one = transition.numbers(np.array([[0.5, 2.0]]))
    expected = transition(np.repeat(one, 7, axis=0), x, actions)
    for used in (transition, copy.deepcopy(transition), pickle.loads(pickle.dumps(transition))):
        for found, wanted in zip(used(one, x, actions), expected, strict=True):
            np.testing.assert_array_equal(found, wanted)


def test_inference_mode_does_not_keep_it_from_compiling(caplog: pytest.LogCaptureFixture) -> None:
    class Fresh(Residual):
        """So that nothing is known of it."""

    dynamics, reward = Fresh(), Reward()
    with torch.inference_mode(), caplog.at_level(logging.WARNING, "dilqr_rl"):
        assert compiled(dynamics, reward).native
    assert not [record for record in caplog.records if "PyTorch" in record.getMessage()]


def test_what_cannot_be_compiled_steps_in_torch_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    class Sorted(Reward):
        def forward(self, x: Tensor, u: Tensor) -> Tensor:
            return x.sort(dim=-1).values[..., 0]

    with caplog.at_level(logging.WARNING, "dilqr_rl"):
        transition = compiled(Residual(), Sorted())
    assert not transition.native
    (record,) = caplog.records
    assert "stepping Residual with PyTorch" in record.getMessage()
    found = transition(transition.numbers(np.array([[0.5, 2.0]])), np.array([[0.3, -0.4]]), np.zeros((1, 1)))
    assert found.rewards.tolist() == [-0.4]


class WrongShape(Reward):
    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        return x[..., :1]


class Constant(Reward):
    def forward(self, x: Tensor, u: Tensor) -> Any:
        return 1.0


@pytest.mark.parametrize(
    ("dynamics", "reward", "physics", "message"),
    [
        (
            Residual(),
            WrongShape(),
            ("mass",),
            r"reward: expected a float64 tensor of shape \(3,\) .* got \(3, 1\) of torch\.float64",
        ),
        (Residual(), Constant(), ("mass",), r"reward: expected a float64 tensor of shape \(3,\) .* got 1\.0"),
        (Residual(), Reward(), ("weight",), r"physics: expected a parameter of a single number for 'weight', got None"),
        (Residual(), Reward(), ("net.weight",), r"physics: expected a parameter of a single number for 'net\.weight', got"),
    ],
)
def test_what_does_not_fit_is_refused(dynamics: Any, reward: Any, physics: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compiled(dynamics, reward, physics)
