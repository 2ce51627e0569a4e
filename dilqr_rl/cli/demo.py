"""`dilqr demo`: the whole story in two minutes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from dilqr_rl.cli.console import console, progress

if TYPE_CHECKING:
    from stable_baselines3.common.policies import ActorCriticPolicy

    from dilqr_rl.agents.demonstrations import Demonstrations
    from dilqr_rl.agents.rollouts import RollOuts

_ENV = "dilqr_rl/Pendulum-v0"
_WRONG = {"gravity": 15.0, "mass": 3.0, "length": 0.5}
_LEARN = ("dynamics.gravity", "dynamics.mass", "dynamics.length")
_HORIZON = 20
_STEPS = 200  # of an episode


@dataclass(frozen=True)
class Demo:
    """An expert swings a pendulum up; a planner with wrong physics learns from its actions alone to do the same."""

    out: Path = Path("demo")
    """Folder for the demonstrations, the clone, a plot and a GIF; a number is added to its name if it exists."""
    episodes: int = 10
    """Episodes to clone from."""
    evaluation_episodes: int = 8
    """Episodes to compare the policies on."""
    steps: int = 100
    """Optimiser steps."""
    seed: int = 0
    """Of the first episode, of the split, and of the network."""

    def run(self) -> None:
        """Roll out, clone, compare, and leave the evidence in a folder."""
        from dilqr_rl.agents import CloningOptions, Demonstrations, MPCPolicy, clone, imitation_loss
        from dilqr_rl.agents.environments import make_env
        from dilqr_rl.cli.pictures import draw_learning, write_gif
        from dilqr_rl.cli.tables import parameter_table

        folder = _new_folder(self.out)
        env = make_env(_ENV)
        exact = MPCPolicy.for_env(env, horizon=_HORIZON, warm_start=False)
        everything = self._roll_out("1/5 expert", exact, self.episodes + self.evaluation_episodes, self.seed)
        episodes = everything.demonstrations.episodes
        data = Demonstrations(_ENV, {}, episodes[: self.episodes])
        data.save(folder / "demonstrations.npz")
        train, validation, test = data.split(self.seed)

        clone_of = MPCPolicy.for_env(env, horizon=_HORIZON, warm_start=False, physics=_WRONG, learn=_LEARN)
        start, before = clone_of.parameter_values(), imitation_loss(clone_of, test)
        first = self.seed + self.episodes
        wrong = self._roll_out("2/5 clone before training", clone_of, self.evaluation_episodes, first)
        with progress("3/5 cloning", self.steps) as bar:
            result = clone(
                clone_of,
                train,
                validation,
                CloningOptions(steps=self.steps, seed=self.seed),
                lambda so_far: bar.advance(note=f"validation loss {so_far.validation[-1][1]:.1e}"),
            )
        clone_of.save(folder / "clone.safetensors")
        learnt = self._roll_out("4/5 clone after training", clone_of, self.evaluation_episodes, first)
        network = self._network(train, validation)
        reference = self._roll_out("5/5 network", network, self.evaluation_episodes, first)

        after = imitation_loss(clone_of, test)
        comparison = Table(title=f"on {self.evaluation_episodes} new starts", title_justify="left")
        for column in ("", "imitation loss", "return"):
            comparison.add_column(column, justify="left" if not column else "right")
        expert_return = everything.returns[self.episodes :].mean()
        comparison.add_row("expert", "0", f"{expert_return:.2f}")
        comparison.add_row("clone before training", f"{before:.2g}", f"{wrong.returns.mean():.2f}")
        comparison.add_row("clone after training", f"{after:.2g}", f"{learnt.returns.mean():.2f}", style="bold")
        comparison.add_row("network, same data", f"{imitation_loss(network, test):.2g}", f"{reference.returns.mean():.2f}")

        lowest = min(learnt.demonstrations.episodes, key=lambda episode: episode.observations[0, 0])
        models = {"before": MPCPolicy.for_env(env, physics=_WRONG).problem.dynamics, "after": clone_of.problem.dynamics}
        draw_learning(result, models, lowest, folder / "learning.png")
        write_gif(_ENV, lowest, folder / "swing_up.gif")
        env.close()
        console.print(parameter_table(start, clone_of.parameter_values(), exact.parameter_values()))
        console.print(
            "A pendulum's motion depends on mass, length and gravity through the two combinations in bold alone, so actions "
            "identify these two; along the third direction every value fits equally well.",
            highlight=False,
        )
        console.print(comparison)
        console.print(
            f"The loss fell by a factor of {before / after:.1e}. In {folder}/: "
            + ", ".join(sorted(p.name for p in folder.iterdir()))
        )

    def _roll_out(self, title: str, policy: ActorCriticPolicy, episodes: int, seed: int) -> RollOuts:
        from dilqr_rl.agents import roll_out

        with progress(title, episodes * _STEPS) as bar:
            return roll_out(policy, _ENV, episodes=episodes, seed=seed, on_step=bar.advance)

    def _network(self, train: Demonstrations, validation: Demonstrations) -> ActorCriticPolicy:
        import torch

        from dilqr_rl.agents import CloningOptions, clone, network_policy
        from dilqr_rl.agents.environments import make_env

        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            network = network_policy(make_env(_ENV))
        clone(network, train, validation, CloningOptions(steps=3000, learning_rate=3e-3, validate_every=100, seed=self.seed))
        return network


def _new_folder(path: Path) -> Path:
    """The folder, made; with the first free number behind its name if it exists."""
    number, folder = 1, path
    while True:
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            number += 1
            folder = path.with_name(f"{path.name}-{number}")
        else:
            return folder
