"""`dilqr train`: learn from the demonstrations of a file."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from dilqr_rl.cli.console import console
from dilqr_rl.cli.modules import WithModules

if TYPE_CHECKING:
    from dilqr_rl.agents import Demonstrations, FitOptions, FitResult, Learner, PlanningLearner
    from dilqr_rl.tasks import ControlTask

_CLOSED_LOOP_HORIZON = 20  # of `dilqr expert`
_SETS = 3  # to train, to validate and to test: as many episodes it takes to have different ones in each
_FOR = {  # options that only some learners have a use for
    "off_by": ("dx", "cost_dx", "sysid"),
    "physics": ("dx", "cost", "cost_dx", "sysid", "residual"),
    "learn": ("dx", "cost", "cost_dx", "sysid", "residual", "lqr"),
    "gradient": ("dx", "cost", "cost_dx", "residual", "lqr"),
}


@dataclass(frozen=True)
class Train(WithModules):
    """Learn from demonstrations, from observations and actions alone. Ctrl-C, SIGTERM and SIGHUP keep the best so far.

    Learners: dx (physics, through the planner), cost, cost_dx (both), sysid (physics, from the motion), residual (a network
    beside physics that are wrong, see --physics), lqr (a linear model), nn (an LSTM), mlp (a network).
    """

    demonstrations: tyro.conf.Positional[Path]
    """An .npz file, as `dilqr expert` writes it, or a folder of Demonstrations.save_folder. Fewer than three episodes are each
    divided in time: three fifths to train on, a fifth to validate, the last fifth to test."""
    key: str | None = None
    """The part of named observations that the state is read from; "state" by default."""
    learner: str = "dx"
    """dx, cost, cost_dx, sysid, residual, lqr, nn or mlp."""
    out: Path | None = None
    """The checkpoint to write; the demonstrations' name with .safetensors behind it by default."""
    off_by: float | None = None
    """Learnt physics start wrong by this factor, up or down at random, to see them found; 1 starts at the environment's own. 2
    by default, 1 beside --physics."""
    physics: dict[str, float] = field(default_factory=dict)
    """Where physics start instead, e.g. --physics gravity 15 mass 3 length 0.5."""
    learn: tuple[str, ...] = ()
    """Learn only these of the learner's parameters, e.g. --learn dynamics.mass."""
    horizon: int | None = None
    """Steps that a plan looks ahead: the demonstrator's, if known. By default that of demonstrated plans, else 20 for planners,
    1 for mlp, and the environment's own for nn."""
    gradient: Literal["implicit", "diffmpc"] | None = None
    """Of the planner; implicit by default."""
    optimizer: Literal["lm", "adam", "rmsprop"] | None = None
    """The learner's own by default: lm (Levenberg-Marquardt) where there are a few parameters, else adam."""
    epochs: int | None = None
    """At most; the learner's own by default, like the next three."""
    batch_size: int | None = None
    """Segments in one gradient step."""
    learning_rate: float | None = None
    """Of adam and rmsprop."""
    patience: int | None = None
    """Epochs without better parameters after which the fit ends."""
    seed: int = 0
    """Of the split into training, validation and test episodes, of first weights, and of the batches."""
    folder: Path | None = None
    """Keep the log (csv, TensorBoard) and what it takes to resume here."""
    resume: bool = False
    """Go on with the fit that --folder keeps."""
    overwrite: bool = False
    """Overwrite the checkpoint if it exists."""

    def run(self) -> None:
        """Train, write, and tell."""
        from dilqr_rl.agents import Demonstrations, check_disjoint
        from dilqr_rl.agents.environments import make_env
        from dilqr_rl.agents.files import check_can_write
        from dilqr_rl.tasks import find_task, known_ids

        given = self.demonstrations if self.demonstrations.name not in {"", ".."} else self.demonstrations.resolve()
        out = check_can_write(self.out or given.with_suffix(".safetensors"), overwrite=self.overwrite)
        self._check()
        data = Demonstrations.load(self.demonstrations)
        data = data if self.key is None else data.part(self.key)
        in_time = len(data) < _SETS and not data.open_loop
        train, validation, test = data.split_in_time() if in_time else data.split(self.seed)
        check_disjoint(train=train, validation=validation, test=test)
        if train.env_id not in known_ids():
            raise ValueError(
                f"{self.demonstrations}: expected an environment among {known_ids()}, got {train.env_id!r}. One of your "
                "own, with its model, is registered by a module that you name: --import MODULE."
            )
        env = make_env(train.env_id, train.env_kwargs)
        task = find_task(env)
        env.close()
        learner = self._learner(task, train)
        start, before = learner.readable_parameters(), learner.imitation_loss(test)
        result = self._fit(learner, train, validation)
        self._save(learner, out)
        self._tell(learner, start, task, train)
        console.print(
            f"imitation loss on {_counted(test, in_time)}: {before:.3g} before, {learner.imitation_loss(test):.3g} after "
            f"{result.best_epoch} epochs, the best of {int(result.history[-1]['epoch'])} ({result.stopped})"
        )
        if result.note:
            console.print(f"note: {result.note}", soft_wrap=True)
        console.print(f"checkpoint written to {out}", soft_wrap=True)

    def _save(self, learner: Learner, out: Path) -> None:
        try:
            learner.save(out, overwrite=self.overwrite)
        except OSError as error:
            if self.folder is None or not (self.folder / "fit.safetensors").is_file():
                raise
            raise OSError(f"{error}. {self.folder} keeps the fit: --resume with another --out writes the best.") from error

    def _check(self) -> None:
        from dilqr_rl.agents import LEARNERS

        if self.learner not in LEARNERS:
            raise ValueError(f"--learner: expected one of {', '.join(LEARNERS)}, got {self.learner!r}.")
        if self.seed < 0:
            raise ValueError(f"--seed: expected 0 or more, got {self.seed}.")
        if self.off_by is not None and not self.off_by > 0:
            raise ValueError(f"--off-by: expected a number above 0, got {self.off_by}.")
        for option, learners in _FOR.items():
            given = getattr(self, option)
            if given not in (None, (), {}) and self.learner not in learners:
                name = option.replace("_", "-")
                raise ValueError(f"--{name}: expected --learner {', '.join(learners)}, got --learner {self.learner}.")
        if self.resume and self.folder is None:
            raise ValueError("--resume: expected --folder, where the fit is that is to go on.")

    def _learner(self, task: ControlTask, train: Demonstrations) -> Learner:
        """As the options say; what the learner's class doesn't take must not have been given."""
        from dilqr_rl.agents import LEARNERS, PlanningLearner

        kind = LEARNERS[self.learner]
        given: dict[str, Any] = {}
        if train.open_loop or self.horizon is not None:
            given["horizon"] = len(train.episodes[0]) if self.horizon is None else self.horizon
        if not issubclass(kind, PlanningLearner):
            return kind(task, **given, seed=self.seed)
        given.setdefault("horizon", _CLOSED_LOOP_HORIZON)
        if self.learn:
            given["learn"] = self.learn
        if self.learner in ("lqr", "residual"):
            given["seed"] = self.seed
        if self.learner in _FOR["physics"]:
            given["physics"] = {**self._wrong(kind(task, **given)), **self.physics}
        if self.gradient is not None:
            given["gradient"] = self.gradient
        return kind(task, **given)

    def _wrong(self, learner: PlanningLearner) -> dict[str, float]:
        """Each number of the learnt physics times or divided by the factor, at random."""
        from dilqr_rl.agents.learnable import learnt_physics

        factor = self.off_by or (1.0 if self.physics else 2.0)
        rng = random.Random(self.seed)
        physics = learnt_physics(learner.problem) if self.learner in _FOR["off_by"] else {}
        return {name: value * rng.choice((factor, 1 / factor)) for name, value in physics.items()}

    def _fit(self, learner: Learner, train: Demonstrations, validation: Demonstrations) -> FitResult:
        names = ("optimizer", "epochs", "batch_size", "learning_rate", "patience")
        given: dict[str, Any] = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        options: FitOptions = replace(learner.defaults, **given, seed=self.seed)
        unused = [name for name in ("batch_size", "learning_rate") if name in given and options.optimizer == "lm"]
        if unused:
            raise ValueError(
                f"--{unused[0].replace('_', '-')}: expected --optimizer adam or rmsprop with it; lm has no use for it."
            )
        result = learner.fit(train, validation, options, folder=self.folder, resume=self.resume, progress_bar=True)
        if result.stopped == "interrupted":
            console.print(f"interrupted; keeping the best so far, of epoch {result.best_epoch}")
        return result

    def _tell(self, learner: Learner, start: Any, task: ControlTask, train: Demonstrations) -> None:
        """What was learnt, beside the environment's own, and what of it the demonstrations determine."""
        from dilqr_rl.agents import PlanningLearner, identifiability
        from dilqr_rl.agents.learnable import parameter_values
        from dilqr_rl.cli.tables import explain, parameter_table

        if isinstance(learner, PlanningLearner) and start:
            found = identifiability(learner, train)
            console.print(parameter_table(start, learner.readable_parameters(), parameter_values(task.problem()), found))
            console.print(explain(found), highlight=False)


def _counted(test: Demonstrations, in_time: bool) -> str:
    return f"the last {test.num_steps} steps" if in_time else f"{len(test)} test episodes"
