"""`dilqr demo`: the whole story in half a minute."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rich.table import Table

from dilqr_rl.cli.console import console, progress

if TYPE_CHECKING:
    from stable_baselines3.common.policies import ActorCriticPolicy

    from dilqr_rl.agents import CloningOptions, CloningResult, Demonstrations, MPCPolicy
    from dilqr_rl.agents.rollouts import RollOuts

_ENV = "dilqr_rl/Pendulum-v0"
_WRONG = {"gravity": 15.0, "mass": 3.0, "length": 0.5}
_HORIZON = 20
_EPISODE_STEPS = 200
_SMALLEST_LOSS = 1e-15  # of float32 actions, squared
_NETWORK_STEPS, _NETWORK_LEARNING_RATE = 3000, 3e-3


class Outcome(NamedTuple):
    """Figures for the expert, the clone before and after training, and the network; and what the clone learnt."""

    losses: list[float]
    returns: list[float]
    combinations: dict[str, float]


@dataclass(frozen=True)
class Demo:
    """An expert swings a pendulum up; a planner with wrong physics learns from its actions alone to do the same."""

    out: Path = Path("demo")
    """Folder for the demonstrations, the clone, a plot and a GIF; a number is added to its name if it exists."""
    episodes: int = 10
    """Episodes to clone from: a fifth to validate on, a fifth to test on."""
    evaluation_episodes: int = 8
    """Episodes to compare the policies on."""
    steps: int = 300
    """Optimiser steps."""
    seed: int = 0
    """Of the first episode, of the split, and of the network."""

    def run(self) -> Outcome:
        """Roll out, clone, compare, and leave the evidence in a folder."""
        from dilqr_rl.agents import CloningOptions, Demonstrations, imitation_loss
        from dilqr_rl.cli.pictures import draw_learning, write_gif
        from dilqr_rl.cli.tables import combinations, parameter_table

        folder = _new_folder(self.out)
        exact, learner, network = _planner({}), _planner(_WRONG), _network(self.seed)
        wrong, start = _planner(_WRONG), learner.parameter_values()
        experts = self._roll_out("1/5 expert", exact, self.episodes + self.evaluation_episodes, self.seed)
        data = Demonstrations(_ENV, {}, experts.demonstrations.episodes[: self.episodes])
        data.save(folder / "demonstrations.npz")
        train, validation, test = data.split(self.seed)

        before = self._evaluate("2/5 clone before training", wrong)
        result = self._clone(learner, train, validation, CloningOptions(steps=self.steps, seed=self.seed))
        learner.save(folder / "clone.safetensors")
        after = self._evaluate("4/5 clone after training", learner)
        _clone_network(network, train, validation, self.seed)
        reference = self._evaluate("5/5 network", network)

        episode = min(after.demonstrations.episodes, key=lambda episode: float(episode.observations[0, 0]))
        draw_learning(result, {"before": wrong, "after": learner}, episode, folder / "learning.png")
        write_gif(_ENV, episode, folder / "swing_up.gif")
        losses = [imitation_loss(policy, test) for policy in (exact, wrong, learner, network)]
        expert_returns = experts.returns[self.episodes :]
        returns = [float(found.mean()) for found in (expert_returns, before.returns, after.returns, reference.returns)]
        console.print(parameter_table(start, learner.parameter_values(), exact.parameter_values()))
        console.print(
            f"A scan over the physics brought the validation loss from {result.start_loss:.1e} to "
            f"{result.validation[0][1]:.1e}, the gradient from there to {min(loss for _, loss in result.validation):.1e}.",
            highlight=False,
        )
        console.print(
            "A pendulum's motion depends on mass, length and gravity through the two combinations in bold alone, so actions "
            "identify these two; along the third direction every value fits equally well.",
            highlight=False,
        )
        console.print(_comparison(losses, returns))
        files = ", ".join(sorted(path.name for path in folder.iterdir()))
        console.print(
            f"The loss fell by a factor of {losses[1] / max(losses[2], _SMALLEST_LOSS):.1e}. In {folder}/: {files}",
            highlight=False,
        )
        return Outcome(losses, returns, combinations(learner.parameter_values()))

    def _roll_out(self, title: str, policy: ActorCriticPolicy, episodes: int, seed: int) -> RollOuts:
        from dilqr_rl.agents import roll_out

        with progress(title, episodes * _EPISODE_STEPS) as bar:
            return roll_out(policy, _ENV, episodes=episodes, seed=seed, on_step=bar.advance)

    def _evaluate(self, title: str, policy: ActorCriticPolicy) -> RollOuts:
        """On starts that no demonstration had."""
        return self._roll_out(title, policy, self.evaluation_episodes, self.seed + self.episodes)

    def _clone(
        self, policy: MPCPolicy, train: Demonstrations, validation: Demonstrations, options: CloningOptions
    ) -> CloningResult:
        from dilqr_rl.agents import clone

        with progress("3/5 cloning", options.steps) as bar:

            def tell(result: CloningResult) -> None:
                bar.advance(note=f"validation loss {result.validation[-1][1]:.1e}")

            result = clone(policy, train, validation, options, tell)
        if result.interrupted:
            raise KeyboardInterrupt
        return result


def _planner(physics: dict[str, float]) -> MPCPolicy:
    from dilqr_rl.agents import MPCPolicy
    from dilqr_rl.agents.environments import make_env

    env = make_env(_ENV)
    try:
        return MPCPolicy.for_env(env, horizon=_HORIZON, warm_start=False, physics=physics)
    finally:
        env.close()


def _network(seed: int) -> ActorCriticPolicy:
    import torch

    from dilqr_rl.agents import network_policy
    from dilqr_rl.agents.environments import make_env

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return network_policy(make_env(_ENV))


def _clone_network(network: ActorCriticPolicy, train: Demonstrations, validation: Demonstrations, seed: int) -> None:
    from dilqr_rl.agents import CloningOptions, clone

    options = CloningOptions(steps=_NETWORK_STEPS, learning_rate=_NETWORK_LEARNING_RATE, validate_every=100, seed=seed)
    clone(network, train, validation, options)


def _comparison(losses: list[float], returns: list[float]) -> Table:
    table = Table(title="how well it imitates and controls", title_justify="left")
    for column in ("", "loss on held-out episodes", "return on new starts"):
        table.add_column(column, justify="right" if column else "left")
    names = ("expert", "clone before training", "clone after training", "network, same data")
    for name, loss, value in zip(names, losses, returns, strict=True):
        table.add_row(name, f"{loss:.2g}", f"{value:.2f}", style="bold" if name.endswith("after training") else None)
    return table


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
