"""Three ways to a model of an environment that isn't ours: MuJoCo's InvertedPendulum-v5, a pole on a cart, to be balanced.

1. By hand: the equations of a cart with a pole, with the masses and lengths that MuJoCo has.
2. With a residual: the same equations with numbers that are far off (those of the published cart-pole, ten times too light and
   without friction), and a small network beside them that is fitted to 2,000 random steps.
3. From reward: the far-off numbers again, as the physics that PPO trains, for 8,192 steps.

Run it: `python examples/inverted_pendulum.py`, with the extra "mujoco". It takes some forty seconds on one core; the first
time, when the models are compiled, a minute more. It prints

    by hand, two steps   error 3.5e-08
    by hand              error 1.1e-04   return 1000
    far off              error 8.6e+00   return  148
    far off + residual   error 1.7e-02   return 1000
    far off + PPO        error 1.5e+00   return 1000

The error is that of the pole's angular velocity after one step of 0.04 s, in rad/s; 1000 is the largest return there is. PPO's
model still predicts badly (1.5 to 4.8 over seeds 0 to 3): reward asks for controls that balance, not for predictions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
import tyro
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from torch import Tensor, nn

from dilqr_rl import ControlTask, QuadraticCost
from dilqr_rl.agents import MPCPolicy, ResidualDynamics, SolverHealthCallback, roll_out
from dilqr_rl.signals import until_interrupted

ENV_ID = "InvertedPendulum-v5"
GEAR = 100.0  # N per unit of action; actions go from -3 to 3

Steps = tuple[Tensor, Tensor, Tensor]  # states (N, 4), controls (N, 1) and next states (N, 4)


@dataclass(frozen=True)
class Args:
    episodes: int = 5  # that each return is the mean of
    random_steps: int = 2_000
    fit_iterations: int = 150
    ppo_steps: int = 8_192
    seed: int = 0
    out: Path | None = None
    """where to keep PPO's model, a .zip; Ctrl-C, SIGTERM and SIGHUP end the training early, and it is kept all the same"""


class CartPole(nn.Module):
    """A pole on a cart; state (x, θ, x', θ') in m, rad, m/s and rad/s with θ = 0 upright, control a force on the cart in N.

    `length` is from the hinge to the pole's centre of mass, `inertia` about that centre, and `lean` the angle between the
    line through both and the one whose angle is θ. MuJoCo makes two Runge-Kutta steps of 0.02 s; one of 0.04 s is as good to
    plan with, and compiles in half the time.
    """

    positive = ("cart_mass", "pole_mass", "length", "inertia")  # stay so while they are learnt

    def __init__(
        self,
        masses: tuple[float, float],
        length: float,
        inertia: float,
        damping: tuple[float, float] = (0.0, 0.0),
        lean: float = 0.0,
        steps: int = 1,
    ) -> None:
        super().__init__()
        self.cart_mass, self.pole_mass = number(masses[0]), number(masses[1])
        self.length, self.inertia = number(length), number(inertia)
        self.cart_damping, self.pole_damping = number(damping[0]), number(damping[1])
        self.lean, self.steps = nn.Buffer(torch.tensor(lean, dtype=torch.float64)), steps

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        """The state (..., 4) after 0.04 s."""
        h = 0.04 / self.steps
        for _ in range(self.steps):
            k1 = self.rate(x, u)
            k2 = self.rate(x + h / 2 * k1, u)
            k3 = self.rate(x + h / 2 * k2, u)
            k4 = self.rate(x + h * k3, u)
            x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        return x

    def rate(self, x: Tensor, u: Tensor) -> Tensor:
        """dx/dt, from the two equations of motion a x'' + b θ'' = push and b x'' + c θ'' = tilt."""
        _, angle, speed, spin = x.unbind(-1)
        sin, cos = (angle + self.lean).sin(), (angle + self.lean).cos()
        moment = self.pole_mass * self.length
        a, b, c = self.cart_mass + self.pole_mass, moment * cos, self.inertia + moment * self.length
        push = u[..., 0] - self.cart_damping * speed + moment * sin * spin**2
        tilt = 9.81 * moment * sin - self.pole_damping * spin
        determinant = a * c - b * b
        return torch.stack((speed, spin, (c * push - b * tilt) / determinant, (a * tilt - b * push) / determinant), dim=-1)


def number(value: float) -> nn.Parameter:
    return nn.Parameter(torch.tensor(float(value), dtype=torch.float64))


def by_hand(env: gym.Env[Any, Any], steps: int = 1) -> CartPole:
    """With the numbers that MuJoCo has worked out from its file."""
    mujoco: Any = env.unwrapped.model  # type: ignore[attr-defined]
    cart, pole = mujoco.body("cart").id, mujoco.body("pole").id
    across, _, up = mujoco.body_ipos[pole]
    masses, damping = (mujoco.body_mass[cart], mujoco.body_mass[pole]), tuple(mujoco.dof_damping)
    return CartPole(masses, math.hypot(across, up), mujoco.body_inertia[pole][0], damping, math.atan2(across, up), steps)


def far_off() -> CartPole:
    """With the numbers of the published cart-pole (Barto, Sutton and Anderson 1983), as in Gymnasium's CartPole-v1."""
    return CartPole(masses=(1.0, 0.1), length=0.5, inertia=0.1 * 1.0**2 / 12)


class Correction(nn.Module):
    """What is added to a predicted state, from the state and the force. Where the cart is makes no difference, so x isn't seen.

    Without this, plans at places where no random step has been would rest on what the network makes up there.
    """

    def __init__(self, seen: Tensor, missing: Tensor) -> None:
        """Scaled to inputs (N, 5) and wanted outputs (N, 4)."""
        super().__init__()
        self.seen_scale, self.missing_scale = nn.Buffer(seen[:, 1:].std(0)), nn.Buffer(missing.std(0))
        self.linear = nn.Linear(4, 4, dtype=torch.float64)
        self.network = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 4)).double()

    def forward(self, both: Tensor) -> Tensor:
        inputs = both[..., 1:] / self.seen_scale
        correction: Tensor = self.missing_scale * (self.linear(inputs) + self.network(inputs))
        return correction


def make_task(dynamics: nn.Module) -> ControlTask:
    return ControlTask(
        name=ENV_ID,
        dynamics=dynamics,
        stage_cost=QuadraticCost(weights=[1.0, 10.0, 0.1, 0.1, 1e-6], goal=[0.0] * 5),
        observation_to_state=observation_to_state,
        horizon=20,  # 0.8 s
        state_size=4,
        control_size=1,
        u_min=-3 * GEAR,
        u_max=3 * GEAR,
        control_per_action=GEAR,
    )


def observation_to_state(observation: Tensor) -> Tensor:
    return observation


def random_steps(env: gym.Env[Any, Any], count: int, seed: int) -> Steps:
    env.action_space.seed(seed)
    observation, _ = env.reset(seed=seed)
    rows = []
    for _ in range(count):
        action = env.action_space.sample()
        following, _, terminated, truncated, _ = env.step(action)
        rows.append((observation, GEAR * action, following))
        observation = env.reset()[0] if terminated or truncated else following
    states, controls, after = (torch.as_tensor(np.stack(part), dtype=torch.float64) for part in zip(*rows, strict=True))
    return states, controls, after


def fit_residual(known: CartPole, steps: Steps, args: Args) -> ResidualDynamics:
    """The known equations, and beside them a network that predicts what they get wrong in one step."""
    states, controls, after = steps
    missing = (after - known(states, controls)).detach()
    seen = torch.cat((states, controls / (3 * GEAR)), dim=1)
    torch.manual_seed(args.seed)
    correction = Correction(seen, missing)
    optimiser = torch.optim.LBFGS(
        correction.parameters(), max_iter=args.fit_iterations, history_size=30, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = ((correction(seen) - missing) / correction.missing_scale).square().mean()
        value.backward()
        return value

    optimiser.step(loss)
    return ResidualDynamics(known, correction, control_scale=3 * GEAR)


@torch.no_grad()
def error(model: nn.Module, steps: Steps) -> float:
    """Of the pole's angular velocity after one step, as a root mean square, rad/s."""
    states, controls, after = steps
    return float((model(states, controls) - after)[:, 3].square().mean().sqrt())


def mean_return(policy: MPCPolicy, args: Args) -> float:
    return float(roll_out(policy, ENV_ID, episodes=args.episodes, seed=1000).returns.mean())


def train(args: Args) -> Any:
    """PPO, whose actor plans with the far-off numbers, to begin with. Only the reward tells it better ones."""
    model = PPO(
        MPCPolicy,
        make_vec_env(ENV_ID, 8, seed=args.seed),
        policy_kwargs={"task": make_task(far_off()), "log_std_init": math.log(0.3)},
        n_steps=128,
        batch_size=256,
        n_epochs=5,
        learning_rate=0.03,  # of physics that are learnt as logarithms: 3 % a step
        seed=args.seed,
        device="cpu",
    )
    with until_interrupted():
        model.learn(args.ppo_steps, callback=SolverHealthCallback())
    if args.out is not None:
        model.save(args.out)
    return model.policy


class Row(NamedTuple):
    error: float
    mean_return: float

    def __str__(self) -> str:
        return f"error {self.error:.1e}   return {self.mean_return:4.0f}"


def main(args: Args) -> dict[str, Row]:
    torch.set_num_threads(1)  # these tensors are small
    env = gym.make(ENV_ID)
    fitted_to, held_out = random_steps(env, args.random_steps, args.seed), random_steps(env, 500, args.seed + 1)
    print(f"{'by hand, two steps':20} error {error(by_hand(env, steps=2), held_out):.1e}")
    models = {"by hand": by_hand(env), "far off": far_off(), "far off + residual": fit_residual(far_off(), fitted_to, args)}
    found = {}
    for name, dynamics in models.items():
        policy = MPCPolicy.for_env(env, task=make_task(dynamics), learn=())
        found[name] = Row(error(dynamics, held_out), mean_return(policy, args))
        print(f"{name:20} {found[name]}")
    trained = train(args)
    found["far off + PPO"] = Row(error(trained.problem.dynamics, held_out), mean_return(trained, args))
    print(f"{'far off + PPO':20} {found['far off + PPO']}")
    return found


if __name__ == "__main__":
    main(tyro.cli(Args))
