"""Learn a pendulum's physics through the planner, from forty planned control sequences of an expert.

Run it: `python examples/learn_physics.py`. It takes about fifteen seconds on one core.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import tyro

from dilqr_rl import ILQR, ControlProblem, QuadraticCost
from dilqr_rl.envs import PendulumDynamics


@dataclass(frozen=True)
class Args:
    starts: int = 40
    steps: int = 70
    learning_rate: float = 0.03
    seed: int = 0


def pendulum(dynamics: torch.nn.Module) -> ControlProblem:
    cost = QuadraticCost(weights=[1.0, 1.0, 0.1, 0.001], goal=[1.0, 0.0, 0.0, 0.0])
    return ControlProblem(dynamics, cost, horizon=20, state_size=3, control_size=1, u_min=-2.0, u_max=2.0)


def main(args: Args) -> dict[str, float]:
    torch.set_num_threads(1)  # these tensors are small
    generator = torch.Generator().manual_seed(args.seed)
    angle = (torch.rand(args.starts, generator=generator, dtype=torch.float64) - 0.5) * math.pi
    speed = 2 * torch.rand(args.starts, generator=generator, dtype=torch.float64) - 1
    x0 = torch.stack((angle.cos(), angle.sin(), speed), dim=-1)

    expert = ILQR(pendulum(PendulumDynamics()))
    with torch.no_grad():
        demonstrated = expert(x0).controls

    learner = ILQR(pendulum(PendulumDynamics(gravity=12.0, mass=1.3)))
    log_mass = torch.tensor(math.log(1.3), dtype=torch.float64, requires_grad=True)  # a mass stays positive
    gravity = torch.tensor(12.0, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.Adam(
        [{"params": [log_mass], "lr": args.learning_rate}, {"params": [gravity], "lr": 10 * args.learning_rate}]
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, args.steps)
    for step in range(args.steps):
        solution = learner(x0, params={"dynamics.mass": log_mass.exp(), "dynamics.gravity": gravity})
        loss = (solution.controls - demonstrated).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % 10 == 0 or step == args.steps - 1:
            print(f"step {step:3d}  loss {loss.item():.2e}  mass {log_mass.exp().item():.4f}  gravity {gravity.item():.3f}")
    return {"loss": loss.item(), "mass": log_mass.exp().item(), "gravity": gravity.item()}


if __name__ == "__main__":
    main(tyro.cli(Args))
