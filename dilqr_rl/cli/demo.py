"""`dilqr demo`: the whole story in half a minute."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.table import Table

from dilqr_rl.cli.console import console, progress
from dilqr_rl.cli.modules import WithModules

if TYPE_CHECKING:
    from dilqr_rl.agents import Demonstrations, FitResult, Learner, PhysicsLearner
    from dilqr_rl.agents.rollouts import RollOuts

ENV = "dilqr_rl/Pendulum-v0"
WRONG = {"gravity": 15.0, "mass": 3.0, "length": 0.5}
_HORIZON = 20
_EPISODE_STEPS = 200
_SMALLEST_LOSS = 1e-15  # of float32 actions, squared


class Outcome(NamedTuple):
    """Figures for the expert, the clone before and after training, and the network; and what the clone learnt."""

    losses: list[float]
    returns: list[float]
    combinations: dict[str, float]


@dataclass(frozen=True)
class Demo(WithModules):
    """An expert swings a pendulum up; a planner with wrong physics learns from its actions alone to do the same."""

    out: Path = Path("demo")
    """Folder for the demonstrations, the clone, a plot and a GIF; a number is added to its name if it exists."""
    episodes: int = 10
    """Episodes to clone from: a fifth to validate on, a fifth to test on."""
    evaluation_episodes: int = 8
    """Episodes to compare the policies on."""
    epochs: int = 200
    """Of the network; the planner needs some ten steps."""
    seed: int = 0
    """Of the first episode, of the split, and of the network."""

    def run(self) -> Outcome:
        """Roll out, clone, compare, and leave the evidence in a folder."""
        from dilqr_rl.agents import Demonstrations, NetworkLearner, identifiability
        from dilqr_rl.cli.pictures import draw_learning, write_gif
        from dilqr_rl.cli.tables import explain, parameter_table, single_numbers

        folder = _new_folder(self.out)
        expert, wrong, clone = _planner(), _planner(physics=WRONG), _planner(physics=WRONG)
        network = NetworkLearner(ENV, seed=self.seed)
        experts = self._roll_out("1/6 expert", expert, self.episodes + self.evaluation_episodes, self.seed)
        data = Demonstrations(ENV, {}, experts.demonstrations.episodes[: self.episodes])
        data.save(folder / "demonstrations.npz")
        train, validation, test = data.split(self.seed)

        before = self._evaluate("2/6 clone before training", wrong)
        result = self._fit("3/6 training the clone", clone, train, validation)
        clone.save(folder / "clone.safetensors")
        after = self._evaluate("4/6 clone after training", clone)
        self._fit("5/6 training the network", network, train, validation, epochs=self.epochs)
        reference = self._evaluate("6/6 network", network)

        episode = min(after.demonstrations.episodes, key=lambda episode: float(episode.state_observations[0, 0]))
        draw_learning(result, {"before": wrong, "after": clone}, episode, folder / "learning.png")
        write_gif(ENV, episode, folder / "swing_up.gif")
        compared: tuple[Learner, ...] = (expert, wrong, clone, network)
        losses = [learner.imitation_loss(test) for learner in compared]
        returns = [experts.returns[self.episodes :].mean(), *(found.returns.mean() for found in (before, after, reference))]
        found = identifiability(clone, train)
        start, learnt, true = (learner.readable_parameters() for learner in (wrong, clone, expert))
        console.print(parameter_table(start, learnt, true, found))
        console.print(explain(found), highlight=False)
        console.print(
            f"A scan brought the validation loss from {result.start_loss:.1e} to {result.column('validation_loss')[1][1]:.1e}, "
            f"{result.best_epoch} steps of Levenberg-Marquardt from there to {result.best_validation_loss:.1e}.",
            highlight=False,
        )
        console.print(_comparison(losses, returns))
        files = ", ".join(sorted(path.name for path in folder.iterdir()))
        console.print(
            f"The loss fell by a factor of {losses[1] / max(losses[2], _SMALLEST_LOSS):.1e}. In {folder}/: {files}",
            highlight=False,
        )
        combinations = {c.label: c.value(single_numbers(learnt)) for c in found.combinations()}
        return Outcome(losses, [float(value) for value in returns], combinations)

    def _roll_out(self, title: str, learner: Learner, episodes: int, seed: int) -> RollOuts:
        from dilqr_rl.agents import roll_out

        with progress(title, episodes * _EPISODE_STEPS) as bar:
            return roll_out(learner, ENV, episodes=episodes, seed=seed, on_step=bar.advance)

    def _evaluate(self, title: str, learner: Learner) -> RollOuts:
        """On starts that no demonstration had."""
        return self._roll_out(title, learner, self.evaluation_episodes, self.seed + self.episodes)

    def _fit(
        self, title: str, learner: Learner, train: Demonstrations, validation: Demonstrations, **changes: Any
    ) -> FitResult:
        options = replace(learner.defaults, **changes, seed=self.seed)
        result = learner.fit(train, validation, options, progress_bar=title)
        if result.stopped == "interrupted":
            raise KeyboardInterrupt
        return result


def _planner(**settings: Any) -> PhysicsLearner:
    from dilqr_rl.agents import PhysicsLearner

    return PhysicsLearner(ENV, horizon=_HORIZON, **settings)


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
