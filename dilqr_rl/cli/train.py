"""`dilqr train`: clone the demonstrator of a file."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path

import tyro

from dilqr_rl.cli.console import console, progress


@dataclass(frozen=True)
class Train:
    """Clone demonstrations with a planning policy, from their observations and actions alone. Ctrl-C keeps the best so far."""

    demonstrations: tyro.conf.Positional[Path]
    """An .npz file of `dilqr expert`."""
    out: Path | None = None
    """The checkpoint to write; the demonstrations' name with .safetensors behind it by default."""
    learn: tuple[str, ...] = ("physics",)
    """What is learnt: physics, weights, goal, or single parameters such as dynamics.mass."""
    off_by: float = 2.0
    """Learnt physics start wrong by this factor, up or down at random; 1 starts at the environment's own."""
    physics: dict[str, float] = field(default_factory=dict)
    """Where physics start instead, e.g. --physics gravity 15 mass 3 length 0.5."""
    horizon: int = 20
    """Steps that a plan looks ahead; the demonstrator's, if known."""
    steps: int = 300
    """Optimiser steps."""
    batch_size: int = 128
    """Observations in one step."""
    learning_rate: float = 0.05
    """Of Adam, relative to the size of the physics; it falls along a cosine."""
    seed: int = 0
    """Of the split into training, validation and test episodes, and of the batches."""
    overwrite: bool = False
    """Overwrite the checkpoint if it exists."""

    def run(self) -> None:
        """Train, write, and tell."""
        import torch

        from dilqr_rl.agents import CloningOptions, Demonstrations, MPCPolicy, clone, imitation_loss
        from dilqr_rl.agents.environments import make_env
        from dilqr_rl.agents.files import check_can_write
        from dilqr_rl.agents.learnable import learnt_physics
        from dilqr_rl.cli.tables import parameter_table
        from dilqr_rl.tasks import known_ids

        out = check_can_write(self.out or self.demonstrations.with_suffix(".safetensors"), overwrite=self.overwrite)
        if self.seed < 0:
            raise ValueError(f"--seed: expected 0 or more, got {self.seed}.")
        train, validation, test = Demonstrations.load(self.demonstrations).split(self.seed)
        if train.env_id not in known_ids():
            raise ValueError(f"{self.demonstrations}: expected an environment among {known_ids()}, got {train.env_id!r}.")
        env = make_env(train.env_id, train.env_kwargs)
        exact = MPCPolicy.for_env(env, horizon=self.horizon, learn=self.learn, warm_start=False)
        torch.manual_seed(self.seed)  # the critic's first weights are in the checkpoint too
        physics = {**_wrong(learnt_physics(exact.problem), self.off_by, self.seed), **self.physics}
        policy = MPCPolicy.for_env(env, horizon=self.horizon, learn=self.learn, warm_start=False, physics=physics)
        env.close()
        start, before = policy.parameter_values(), imitation_loss(policy, test)
        options = CloningOptions(steps=self.steps, batch_size=self.batch_size, learning_rate=self.learning_rate, seed=self.seed)
        with progress("cloning", self.steps) as bar:
            result = clone(
                policy,
                train,
                validation,
                options,
                lambda so_far: bar.advance(note=f"validation loss {so_far.validation[-1][1]:.2e}"),
            )
        if result.interrupted:
            console.print(f"interrupted; keeping the best so far, of step {result.best_step}")
        policy.save(out, overwrite=self.overwrite)
        console.print(parameter_table(start, policy.parameter_values(), exact.parameter_values()))
        after = imitation_loss(policy, test)
        console.print(f"imitation loss on {len(test)} test episodes: {before:.3g} before, {after:.3g} after")
        console.print(f"checkpoint of step {result.best_step} written to {out}")


def _wrong(physics: dict[str, float], factor: float, seed: int) -> dict[str, float]:
    """Each number times or divided by the factor, at random."""
    if not factor > 0:
        raise ValueError(f"--off-by: expected a number above 0, got {factor}.")
    rng = random.Random(seed)
    return {name: value * rng.choice((factor, 1 / factor)) for name, value in physics.items()}
