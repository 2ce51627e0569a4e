"""A person's own system: what goes wrong in it is told when it is made, in its own terms."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dilqr_rl.envs import PixelEnv, Preset, SurvivalReward, SystemDynamics, SystemEnv, SystemVectorEnv


class SpringDynamics(SystemDynamics):
    state_size = 2
    control_size = 1
    positive = ("mass",)

    def __init__(self, mass: float = 1.0, stiffness: float = 4.0, *, time_step: float = 0.05) -> None:
        super().__init__({"stiffness": stiffness, "mass": mass}, time_step)  # in another order than the arguments

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        place, speed = x.unbind(-1)
        (force,) = u.unbind(-1)
        speed = speed + self.time_step * (force - self.stiffness * place) / self.mass  # type: ignore[operator]
        return torch.stack((place + self.time_step * speed, speed), dim=-1)


class SpringEnv(SystemEnv):
    env_id = "my/Spring-v0"
    dynamics_class = SpringDynamics
    horizon = 10
    cost_weights = (1.0, 1.0, 0.1)
    cost_goal = (0.0, 0.0, 0.0)
    presets = {"soft": Preset((1.0, 2.0), {"max_force": 1.0})}
    limits: tuple[float, ...] = (3.0, 10.0)

    def __init__(self, physics: Any = None, *, preset: str | None = None, max_force: Any = None, **rest: Any) -> None:
        chosen = self.find_preset(preset)
        force = chosen.with_limits(max_force=max_force)["max_force"]
        super().__init__(chosen, physics, rest.get("randomize"), None, state_limit=self.limits, control_limit=force)

    def reward_function(self) -> nn.Module:
        return SurvivalReward(self.stage_cost())

    def states_at(self, coordinates: np.ndarray) -> np.ndarray:
        return coordinates

    def paint(self, drawing: Any, states: np.ndarray, physics: Any, efforts: np.ndarray) -> None:
        drawing.disc((0.5 + 0.1 * states[:, 0], 0.5), 0.1, (0, 0, 0))


class SpringVectorEnv(SystemVectorEnv):
    env_class = SpringEnv


def test_it_steps_as_its_model_says_whatever_the_order_of_its_physics() -> None:
    env = SpringEnv({"mass": 2.0}, randomize={"stiffness": (3.0, 5.0)})
    _, info = env.reset(seed=0)
    assert list(info["physics"]) == ["mass", "stiffness"]
    after = env.step(np.array([0.5]))[4]["state"]
    place, speed = info["state"]
    speed += 0.05 * (0.5 - info["physics"]["stiffness"] * place) / 2.0
    np.testing.assert_allclose(after, [place + 0.05 * speed, speed], rtol=1e-14)
    batch = SpringVectorEnv(2, physics={"mass": 2.0}, randomize={"stiffness": (3.0, 5.0)})
    np.testing.assert_array_equal(batch.reset(seed=0)[1]["state"][0], info["state"])
    np.testing.assert_array_equal(batch.step(np.full((2, 1), 0.5))[4]["state"][0], after)


def test_each_environment_of_a_batch_has_attributes() -> None:
    batch = SpringVectorEnv(3, randomize={"stiffness": (3.0, 5.0)})
    _, infos = batch.reset(seed=0)
    assert [physics["stiffness"] for physics in batch.get_attr("physics")] == infos["physics"]["stiffness"].tolist()
    assert batch.get_attr("observation_space") == (batch.single_observation_space,) * 3
    assert batch.get_attr("render_mode") == (None, None, None)
    assert batch.get_attr("np_random_seed") == (0, 1, 2)
    with pytest.raises(AttributeError, match="bogus"):
        batch.get_attr("bogus")


def changed(**content: Any) -> Any:
    return type("Changed", (SpringEnv,), content)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"limits": (0.3, 1.0)}, r"state_limit: expected room for all starts, up to \[1\.0, 2\.0\], got \[0\.3, 1\.0\]"),
        ({"limits": (3.0,)}, r"state_limit: expected an array of shape \(2,\)"),
        ({"limits": (3.0, -1.0)}, r"state_limit: expected numbers above 0 and up to"),
        ({"limits": (3.0, 1e39)}, r"state_limit: expected numbers above 0 and up to"),
        (
            {"presets": {"soft": Preset((1.0,), {"max_force": 1.0})}},
            r"states_at: expected states \(2, 2\) at coordinates \(2, 1\)",
        ),
        (
            {"presets": {"soft": Preset((1.0, 2.0), {"force": 1.0})}},
            r"limits: expected \['max_force'\] in the preset, got \['force'\]",
        ),
        (
            {"presets": {"soft": Preset((1.0, 2.0), {"max_force": -1.0})}},
            r"control_limit: expected a finite number above 0, got -1\.0",
        ),
        (
            {"find_preset": lambda *_: Preset((1.0, 2.0), {"max_force": float("nan")})},
            r"control_limit: expected a finite number",
        ),
        ({"reward_function": lambda self: lambda x, u: x[..., 0]}, r"reward: expected an nn\.Module, got <function"),
        ({"reward_function": lambda self: 1.0}, r"reward: expected an nn\.Module, got 1\.0"),
    ],
)
def test_mistakes_in_an_environment_are_told(content: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        changed(**content)()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"positive": "mass"}, r"positive: expected a tuple of names among \['mass', 'stiffness'\], got 'mass'"),
        ({"coupled": ("weight",)}, r"coupled: expected a tuple of names among \['mass', 'stiffness'\], got \('weight',\)"),
        ({"cosines": (1,)}, r"cosines: expected places from 0 to state_size - 2, each with its sine behind it, got \(1,\)"),
    ],
)
def test_mistakes_in_dynamics_are_told(content: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        type("Changed", (SpringDynamics,), content)


def test_physics_that_are_no_arguments_are_told() -> None:
    class Forgetful(SpringDynamics):
        def __init__(self, mass: float = 1.0, friction: float = 0.0, *, time_step: float = 0.05) -> None:
            SystemDynamics.__init__(self, {"mass": mass}, time_step)

    with pytest.raises(ValueError, match=r"physics: expected a number for each of \['mass', 'friction'\], .* got \['mass'\]"):
        Forgetful()


def test_the_first_argument_is_the_preset() -> None:
    class Wrong(SpringEnv):
        def __init__(self) -> None:
            SystemEnv.__init__(self, None, None, None, None, state_limit=(3.0, 10.0), control_limit=1.0)  # type: ignore[arg-type]

    with pytest.raises(ValueError, match=r"preset: expected what find_preset returns, as the first argument, got None"):
        Wrong()


def test_a_camera_goes_in_front() -> None:
    class SpringPixelsEnv(PixelEnv, SpringEnv):
        def paint_line(self, drawing: Any, states: np.ndarray, physics: Any) -> None:
            drawing.disc((0.5, 0.5), 0.1, (0, 0, 0))

    assert SpringPixelsEnv(size=16).reset(seed=0)[0].shape == (16, 16, 12)
