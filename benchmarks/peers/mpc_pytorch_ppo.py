"""PPO of Stable-Baselines3 with mpc.pytorch as the actor: `python -m benchmarks.peers.mpc_pytorch_ppo HORIZON STEPS`.

Prints environment steps per second of processor time, of one rollout and one update. The planner has its own default number of
iterations, 10.
"""

from __future__ import annotations

import sys
import time
import warnings
from typing import Any

import torch
from mpc import mpc
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor, nn

from benchmarks.peers.mpc_pytorch import Peer
from benchmarks.systems import SYSTEMS

ENVIRONMENTS = 8
ITERATIONS = 10


class Planner(nn.Module):
    """Observations (B, 3) -> mean actions (B, 1)."""

    def __init__(self, horizon: int) -> None:
        super().__init__()
        self.peer = Peer(SYSTEMS["pendulum"], horizon)
        self.model, (self.C, self.c) = self.peer.model, self.peer.cost

    def forward(self, observation: Tensor) -> Tensor:
        B, T = len(observation), self.peer.horizon
        solver = mpc.MPC(
            3,
            1,
            T,
            u_lower=-2.0,
            u_upper=2.0,
            lqr_iter=ITERATIONS,
            grad_method=mpc.GradMethods.ANALYTIC,
            n_batch=B,
            verbose=-1,
            exit_unconverged=False,
            detach_unconverged=False,
        )
        cost = mpc.QuadCost(self.C.expand(T, B, -1, -1), self.c.expand(T, B, -1))
        _, controls, _ = solver(observation.double(), cost, self.model)
        return controls[0].float()


class Policy(ActorCriticPolicy):
    """The planner in the place of the policy's network."""

    def __init__(self, *args: Any, horizon: int, **kwargs: Any) -> None:
        self.horizon = horizon
        super().__init__(*args, net_arch={"pi": [], "vf": [64, 64]}, **kwargs)

    def _build(self, lr_schedule: Any) -> None:
        super()._build(lr_schedule)
        self.action_net = Planner(self.horizon)
        self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)


def main(horizon: int, steps: int) -> None:
    warnings.simplefilter("ignore")
    envs = make_vec_env("Pendulum-v1", ENVIRONMENTS)
    model = PPO(Policy, envs, n_steps=steps, policy_kwargs={"horizon": horizon}, device="cpu", seed=0)
    torch.set_default_dtype(torch.float32)  # the benchmark's adapter sets it to float64
    began = time.process_time()
    model.learn(ENVIRONMENTS * steps)
    print(ENVIRONMENTS * steps / (time.process_time() - began))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
