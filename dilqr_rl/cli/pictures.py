"""What the demo leaves for the eye: a plot and a GIF."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from dilqr_rl.agents import Episode, FitResult, PlanningLearner

__all__ = ["draw_learning", "write_gif"]

_PREDICTED_STEPS = 60


def draw_learning(result: FitResult, planners: Mapping[str, PlanningLearner], episode: Episode, path: Path) -> None:
    """Plot the learning curve, and a real pendulum episode beside what each planner's model makes of its actions.

    Args:
        result: of the cloning.
        planners: whose models predict, by label; the environment's time step is taken from the last.
        episode: observations (T+1, 3) and actions (T, 1).
        path: the PNG file to write.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from dilqr_rl.agents.files import write_whole

    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    losses, motion = figure.subplots(1, 2)
    epochs, validation = result.column("validation_loss")
    losses.semilogy(*result.column("train_loss"), "o-", color="tab:blue", alpha=0.4, label="training")
    losses.semilogy(epochs[1:], validation[1:], "o-", color="tab:blue", label="validation")
    losses.semilogy(0, result.start_loss, "s", color="black", label="validation, before the scan")
    losses.set(xlabel="step of Levenberg-Marquardt", ylabel="imitation loss", title="Learning from actions alone")
    losses.legend()
    steps = min(_PREDICTED_STEPS, len(episode))
    time_step = float([*planners.values()][-1].task.dynamics.time_step)  # type: ignore[arg-type]
    seconds = time_step * np.arange(steps + 1)
    motion.plot(seconds, _angle(episode.state_observations[: steps + 1]), color="black", lw=4, alpha=0.3, label="real")
    for (label, planner), style in zip(planners.items(), ("--", "-"), strict=True):
        predicted = _predict(planner, episode.state_observations[0], episode.actions[:steps])
        motion.plot(seconds, _angle(predicted), style, label=f"predicted, {label} training")
    motion.set(xlabel="time [s]", ylabel="angle from upright [rad]", title="A swing-up, and what the models predict")
    motion.legend()
    write_whole(path, lambda file: figure.savefig(file, dpi=110), overwrite=False)


def write_gif(env_id: str, episode: Episode, path: Path) -> None:
    """Draw a pendulum episode frame by frame, every other step, half size."""
    from PIL import Image

    from dilqr_rl.agents.environments import make_env
    from dilqr_rl.agents.files import write_whole

    env = make_env(env_id, render_mode="rgb_array")
    frames = []
    for observation in episode.state_observations[::2]:
        env.reset(options={"state": observation})
        frames.append(Image.fromarray(np.asarray(env.render())).resize((250, 250), Image.Resampling.LANCZOS).quantize(64))
    env.close()
    duration = 2000 // env.metadata["render_fps"]

    def write(file: Path) -> None:
        frames[0].save(file, save_all=True, append_images=frames[1:], duration=duration, loop=0)

    write_whole(path, write, overwrite=False)


@torch.no_grad()
def _predict(planner: PlanningLearner, start: np.ndarray, actions: np.ndarray) -> np.ndarray:
    states = [torch.as_tensor(start, dtype=torch.float64)]
    for action in actions:
        control = planner.task.control_per_action * torch.as_tensor(action, dtype=torch.float64)
        states.append(planner.problem.dynamics(states[-1], control))
    return torch.stack(states).numpy()


def _angle(states: np.ndarray) -> np.ndarray:
    return np.unwrap(np.arctan2(states[:, 1], states[:, 0]))
