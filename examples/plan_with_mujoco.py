"""Plan with the simulator itself: MuJoCo's InvertedPendulum-v5 and Reacher-v5, without a model of them in torch.

    .venv/bin/python examples/plan_with_mujoco.py

The dynamics are `Simulator(step)`: MuJoCo's own steps from any state, on data of its own, with Jacobians by differences
(mjd_transitionFD knows no Runge-Kutta steps, which these two take). Costs are torch, as ever. It prints the mean return of a
few episodes, and what a decision takes. Needs the extra `mujoco`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import mujoco
import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from torch import Tensor, nn

from dilqr_rl import ControlTask, QuadraticCost, Simulator
from dilqr_rl.agents import MPCPolicy

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Args:
    episodes: int = 3
    steps: int = 200
    """of an episode, at most"""
    seed: int = 0


class Step:
    """One step of an environment from any state (positions, speeds), on data of its own."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        base: Any = env.unwrapped
        self.model, self.frame_skip = base.model, base.frame_skip
        self.data = mujoco.MjData(self.model)

    def __call__(self, x: Array, u: Array) -> Array:
        """The next state (n,) after x (n,) under the actions u (m,)."""
        positions = self.model.nq
        self.data.qpos[:], self.data.qvel[:], self.data.ctrl[:] = x[:positions], x[positions:], u
        self.data.qacc_warmstart[:] = 0.0  # so that equal arguments give equal bits
        mujoco.mj_step(self.model, self.data, self.frame_skip)
        return np.concatenate((self.data.qpos, self.data.qvel))


class ReachCost(nn.Module):
    """How far the fingertip is from the target, in m, and a little for the torques; from (θ1, θ2, target, speeds)."""

    lengths = (0.1, 0.11)  # m

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        """The cost (...,) of states (..., 8) and actions (..., 2)."""
        first, second = x[..., 0], x[..., 0] + x[..., 1]
        across = self.lengths[0] * first.cos() + self.lengths[1] * second.cos() - x[..., 2]
        along = self.lengths[0] * first.sin() + self.lengths[1] * second.sin() - x[..., 3]
        distance = (across**2 + along**2 + 1e-4).sqrt()  # smooth at the target
        return distance + 1e-3 * x[..., 4:6].square().sum(-1) + 0.05 * u.square().sum(-1)


def reacher_state(observation: Tensor) -> Tensor:
    """(cos θ, sin θ, target, speeds, distance) as (θ, target, speeds), the target at rest."""
    angles = torch.atan2(observation[..., 2:4], observation[..., :2])
    target, speeds = observation[..., 4:6], observation[..., 6:8]
    return torch.cat((angles, target, speeds, torch.zeros_like(speeds)), dim=-1)


def itself(observation: Tensor) -> Tensor:
    return observation


def make_task(env: gym.Env[Any, Any]) -> ControlTask:
    """The simulator as a task, with a cost."""
    (spec, space) = (env.spec, env.action_space)
    name = "" if spec is None else spec.id
    pendulum = name == "InvertedPendulum-v5"
    return ControlTask(
        name=name,
        dynamics=Simulator(Step(env), batched=False),
        stage_cost=QuadraticCost([1.0, 10.0, 0.1, 0.1, 0.01], [0.0] * 5) if pendulum else ReachCost(),
        observation_to_state=itself if pendulum else reacher_state,
        horizon=20 if pendulum else 10,
        state_size=4 if pendulum else 8,
        control_size=space.shape[0],  # type: ignore[index]
        u_min=float(space.low[0]),  # type: ignore[attr-defined]
        u_max=float(space.high[0]),  # type: ignore[attr-defined]
    )


def control(env_id: str, args: Args) -> tuple[float, float]:
    """The mean return, and the median time (s) of a decision."""
    env = gym.make(env_id)
    policy, returns, seconds = MPCPolicy.for_env(env, task=make_task(env)), [], []
    for episode in range(args.episodes):
        seen, state, total = env.reset(seed=args.seed + episode)[0], None, 0.0
        for _ in range(args.steps):
            began = time.perf_counter()
            action, state = policy.predict(seen, state)
            seconds.append(time.perf_counter() - began)
            seen, reward, terminated, truncated, _ = env.step(action)
            total += float(reward)
            if terminated or truncated:
                break
        returns.append(total)
    env.close()
    return float(np.mean(returns)), float(np.median(seconds))


def main(args: Args) -> dict[str, tuple[float, float]]:
    """Control both; returns what is printed."""
    torch.set_num_threads(1)
    found = {env_id: control(env_id, args) for env_id in ("InvertedPendulum-v5", "Reacher-v5")}
    for env_id, (total, seconds) in found.items():
        print(f"{env_id}: return {total:.1f} in {args.steps} steps at most, {1e3 * seconds:.0f} ms a decision")
    return found


if __name__ == "__main__":
    main(tyro.cli(Args))
