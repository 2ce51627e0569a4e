"""`dilqr` from the shell's side: what it leaves, what it prints, what it refuses."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from dilqr_rl.agents import LEARNERS, Demonstrations, Episode, MPCPolicy, PhysicsLearner, load_learner
from dilqr_rl.agents import rollouts as rollouts_module
from dilqr_rl.agents.learners.levenberg_marquardt import LevenbergMarquardt
from dilqr_rl.cli import main
from dilqr_rl.envs import register_environments

ENV = "dilqr_rl/Pendulum-v0"
TINY = ("--horizon", "4")


def run(*arguments: str | Path) -> None:
    main([str(argument) for argument in arguments])


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """What a refused command says where errors belong: one line, however long."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
        run(*arguments)
    said = capsys.readouterr().err
    assert exit_.value.code == 2
    assert said.count("\n") == 1, said
    assert said.startswith("error: ")
    return said


@pytest.fixture
def demonstrations(tmp_path: Path) -> Path:
    """Made by hand, by a pendulum of 1.2 kg near upright."""
    env = gym.make(f"dilqr_rl.envs:{ENV}")
    expert = PhysicsLearner.for_env(env, horizon=4, physics={"mass": 1.2}).policy()
    env.close()
    rng = np.random.default_rng(0)
    episodes = []
    for _ in range(3):
        angle, rate = rng.uniform(-0.08, 0.08, (2, 5))
        observations = np.stack((np.cos(angle), np.sin(angle), rate), axis=-1).astype(np.float32)
        episodes.append(Episode(observations, expert.predict(observations[:-1])[0], np.zeros(4), False, True))
    Demonstrations(ENV, {}, tuple(episodes)).save(tmp_path / "demonstrations.npz")
    return tmp_path / "demonstrations.npz"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    env = gym.make(f"dilqr_rl.envs:{ENV}")
    MPCPolicy.for_env(env, horizon=4, warm_start=False).save(tmp_path / "clone.safetensors")
    env.close()
    return tmp_path / "clone.safetensors"


def test_expert_train_and_evaluate_follow_on_each_other(
    short_episodes: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, clone = tmp_path / "data.npz", tmp_path / "clone.safetensors"
    run("expert", ENV, "-n", "4", "--out", data, *TINY, "--physics", "mass", "2", "length", "0.5", "--seed", "3")
    assert f"{4 * short_episodes} steps written to {data}" in capsys.readouterr().out.replace("\n", "")
    found = Demonstrations.load(data)
    assert (found.env_id, found.env_kwargs) == (ENV, {"physics": {"mass": 2.0, "length": 0.5}})
    assert [len(episode) for episode in found.episodes] == [short_episodes] * 4

    run("train", data, "--out", clone, *TINY, "--epochs", "2", "--learn", "dynamics.mass")
    said = capsys.readouterr().out
    assert re.search(r"mass .* 2 ", said), said  # the demonstrator's mass is known to be the true one
    assert "test episodes" in said
    learner = PhysicsLearner.load(clone)
    assert learner.task.env_kwargs == found.env_kwargs
    assert learner.problem.dynamics.length == 0.5
    assert learner.horizon == 4

    run("evaluate", clone, "-n", "2")
    assert "converged" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clone.safetensors", "data.npz"]


def test_the_expert_is_the_policy_and_its_seeds_count_up(short_episodes: int, tmp_path: Path) -> None:
    run("expert", ENV, "-n", "2", "--out", tmp_path / "data.npz", *TINY, "--seed", "7")
    env = gym.make(ENV)
    policy = MPCPolicy.for_env(env, horizon=4, warm_start=False)
    for number, episode in enumerate(Demonstrations.load(tmp_path / "data.npz").episodes):
        observation, _ = env.reset(seed=7 + number)
        np.testing.assert_array_equal(episode.observations[0], observation)
        np.testing.assert_array_equal(episode.actions, policy.predict(episode.observations[:-1])[0])


def test_plans_are_recorded_and_learnt_with_their_length(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, clone = tmp_path / "plans.npz", tmp_path / "clone.safetensors"
    run("expert", ENV, "-n", "4", "--out", data, "--horizon", "7", "--plans", "--seed", "3")
    found = Demonstrations.load(data)
    assert found.open_loop
    assert [len(episode) for episode in found.episodes] == [7] * 4
    run("train", data, "--out", clone, "--epochs", "2")
    assert PhysicsLearner.load(clone).horizon == 7


def test_train_brings_the_loss_down(demonstrations: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("train", demonstrations, "--out", tmp_path / "clone.safetensors", "--learn", "dynamics.mass", *TINY)
    said = capsys.readouterr().out.replace("\n", " ")
    match = re.search(r"imitation loss on 1 test episodes: (\S+) before, (\S+) after", said)
    assert match, said
    assert float(match[2]) < 1e-6 * float(match[1])
    mass = PhysicsLearner.load(tmp_path / "clone.safetensors").problem.dynamics.mass.item()
    assert mass == pytest.approx(1.2, rel=1e-4)  # of float32 actions
    assert re.search(r"mass\W+0\.5\W+1\.2\W+1\W+[0-9.e-]+ %", said), said
    assert "determine every one of these numbers" in said


def test_train_tells_that_the_validation_tells_nothing(
    demonstrations: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The episode that is held out begins at the side, from where every torque is at its bound, whatever the mass."""
    data = Demonstrations.load(demonstrations)
    angle = np.linspace(2.0, 2.1, 5)
    seen = np.stack((np.cos(angle), np.sin(angle), np.zeros(5)), axis=-1).astype(np.float32)
    aside = Episode(seen, np.full((4, 1), -1.0, np.float32), np.zeros(4), False, True)
    held_out = int(np.random.default_rng(0).permutation(3)[1])
    Demonstrations(ENV, {}, tuple(aside if i == held_out else one for i, one in enumerate(data.episodes))).save(
        tmp_path / "new.npz"
    )
    run("train", tmp_path / "new.npz", "--out", tmp_path / "clone.safetensors", "--learn", "dynamics.mass", *TINY)
    said = capsys.readouterr().out.replace("\n", " ")
    assert "note: the validation loss was 0 for all parameters that were tried, so it tells none from another" in said
    assert PhysicsLearner.load(tmp_path / "clone.safetensors").problem.dynamics.mass.item() == pytest.approx(1.2, rel=1e-4)


def test_train_tells_what_the_demonstrations_leave_open(
    demonstrations: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("train", demonstrations, "--out", tmp_path / "clone.safetensors", *TINY)
    said = capsys.readouterr().out
    assert said.count("not by itself") == 3
    for name, value in (("gravity / length", "10"), ("mass · length²", "1.2")):
        assert re.search(rf"{re.escape(name)}\W+[0-9.]+\W+{value}\W", said), said
    assert "There is one way to change mass, length, gravity together" in said


@pytest.mark.parametrize("learner", sorted(LEARNERS))
def test_every_learner_is_trained_and_evaluated(
    learner: str, demonstrations: Path, short_episodes: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clone = tmp_path / "clone.safetensors"
    run("train", demonstrations, "--learner", learner, "--out", clone, "--epochs", "1", "--horizon", "2")
    assert "test episodes" in capsys.readouterr().out
    assert load_learner(clone).name == learner
    run("evaluate", clone, "-n", "2")
    assert "return" in capsys.readouterr().out


def test_train_goes_on_where_it_was_cut_off(demonstrations: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second, folder = tmp_path / "a.safetensors", tmp_path / "b.safetensors", tmp_path / "run"
    arguments = ("train", demonstrations, "--learner", "mlp", "--epochs", "3", "--folder", folder)
    run(*arguments, "--out", first)
    assert "exists already. Go on (--resume" in refused(capsys, *arguments, "--out", second)
    run(*arguments, "--out", second, "--resume")
    one, other = (load_learner(path).state_dict() for path in (first, second))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert (folder / "progress.csv").read_text().count("\n") == 5  # names, the start, and three epochs


def test_train_starts_where_it_is_told(demonstrations: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--epochs", "1", "--learn", "dynamics.mass", "--physics", "mass", "7.5", *TINY)
    run("train", demonstrations, "--out", tmp_path / "clone.safetensors", *arguments)
    assert re.search(r"mass\W+7\.5\W", capsys.readouterr().out)


def test_an_interrupted_training_keeps_the_best(
    demonstrations: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(LevenbergMarquardt, "run_epoch", interrupt)
    run("train", demonstrations, "--out", tmp_path / "clone.safetensors", *TINY)
    assert "interrupted; keeping the best so far" in capsys.readouterr().out
    PhysicsLearner.load(tmp_path / "clone.safetensors")


def test_an_interrupted_expert_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(rollouts_module, "_run", interrupt)
    with pytest.raises(SystemExit) as exit_:
        run("expert", ENV, "-n", "2", "--out", tmp_path / "data.npz", *TINY)
    assert exit_.value.code == 130
    assert "interrupted" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


# Files that exist.


def test_expert_overwrites_only_when_asked(short_episodes: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "data.npz"
    path.write_bytes(b"precious")
    assert f"{path} exists already" in refused(capsys, "expert", ENV, "-n", "2", "--out", path, *TINY)
    assert path.read_bytes() == b"precious"
    run("expert", ENV, "-n", "2", "--out", path, "--overwrite", *TINY)
    assert len(Demonstrations.load(path)) == 2


def test_train_overwrites_only_when_asked(demonstrations: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "clone.safetensors"
    path.write_bytes(b"precious")
    arguments = ("train", demonstrations, "--out", path, "--epochs", "1", *TINY)
    assert f"{path} exists already" in refused(capsys, *arguments)
    assert path.read_bytes() == b"precious"
    run(*arguments, "--overwrite")
    PhysicsLearner.load(path)


# Bad input.


def test_unknown_environments_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ("--out", tmp_path / "data.npz")
    assert "no model is known for 'FrozenLake-v1'; known ids:" in refused(capsys, "expert", "FrozenLake-v1", *out)
    for env_id in ("Nowhere-v0", "nowhere:Nowhere-v0", "dilqr_rl/Nowhere-v0"):
        assert f"env: '{env_id}' can't be made" in refused(capsys, "expert", env_id, *out)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--physics", "colour", "1"), "physics"),
        (("--physics", "mass", "-1"), "mass"),
        (("--horizon", "0"), "horizon: expected a positive integer"),
        (("-n", "0"), "episodes: expected at least 1"),
    ],
)
def test_impossible_arguments_of_expert_are_refused(
    arguments: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused(capsys, "expert", ENV, "--out", tmp_path / "data.npz", *arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--learn", "colour"), "learn: the problem has nothing called 'colour'"),
        (("--off-by", "0"), "off-by: expected a number above 0"),
        (("--off-by", "nan"), "off-by: expected a number above 0"),
        (("--physics", "colour", "1"), "physics: 'colour' is no parameter"),
        (("--physics", "mass", "-1"), "physics: expected a number above 0 for 'mass'"),
        (("--epochs", "0"), "epochs: expected a whole number from 1 on, got 0"),
        (("--learner", "dy"), "--learner: expected one of "),
        (
            ("--learner", "mlp", "--physics", "mass", "2"),
            "--physics: expected --learner dx, cost, cost_dx, sysid, residual, got",
        ),
        (("--learner", "nn", "--gradient", "diffmpc"), "--gradient: expected --learner dx, cost, cost_dx, residual, lqr, got"),
        (("--learner", "cost", "--off-by", "3"), "--off-by: expected --learner dx, cost_dx, sysid, got --learner cost"),
        (("--learner", "mlp", "--learn", "goal"), "--learn: expected --learner dx"),
        (("--batch-size", "3"), "--batch-size: expected --optimizer adam or rmsprop with it"),
        (("--horizon", "0"), "horizon: expected a positive integer"),
        (("--learner", "mlp", "--optimizer", "lm"), "optimizer: expected one of ('adam', 'rmsprop')"),
        (("--resume",), "--resume: expected --folder"),
        (("--optimizer", "adam", "--learning-rate", "-1"), "learning_rate: expected a number above 0"),
        (("--horizon", "-4"), "horizon: expected a positive integer"),
    ],
)
def test_impossible_arguments_of_train_are_refused(
    arguments: tuple[str, ...], message: str, demonstrations: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "clone.safetensors"
    assert message in refused(capsys, "train", demonstrations, "--out", out, *TINY, *arguments)
    assert not out.exists()


def test_discrete_actions_are_refused_before_anything_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for more in ((), ("--plans",)):
        said = refused(capsys, "expert", "CartPole-v1", "-n", "3", "--out", tmp_path / "cart.npz", *more)
        assert "CartPole-v1: expected actions that are real numbers, as learners take them" in said
    assert not list(tmp_path.iterdir())
    rollouts_module.roll_out(
        MPCPolicy.for_env(gym.make("CartPole-v1"), horizon=4), "CartPole-v1", episodes=3
    ).demonstrations.save(tmp_path / "cart.npz")
    for learner in ("dx", "mlp"):
        assert "a learner fits real-valued controls" in refused(capsys, "train", tmp_path / "cart.npz", "--learner", learner)


def test_missing_files_and_folders_are_refused(
    demonstrations: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing, out = tmp_path / "missing", ("--out", tmp_path / "out.safetensors")
    assert f"{missing}: there is no such file" in refused(capsys, "train", missing, *out)
    assert f"{missing}: there is no such file" in refused(capsys, "evaluate", missing)
    for command in (("train", demonstrations), ("expert", ENV)):
        assert f"the folder {missing} doesn't exist" in refused(capsys, *command, "--out", missing / "file")


def test_foreign_files_are_refused(
    demonstrations: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    crafted, out = tmp_path / "crafted", ("--out", tmp_path / "out.safetensors")
    crafted.write_bytes(pickle.dumps(print))
    for path in (crafted, checkpoint):
        assert f"{path}: expected an .npz file as `dilqr expert` writes it" in refused(capsys, "train", path, *out)
    for path in (crafted, demonstrations):
        assert f"{path}: expected a safetensors file" in refused(capsys, "evaluate", path)


def test_too_few_plans_are_refused(demonstrations: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    everything = Demonstrations.load(demonstrations)
    Demonstrations(ENV, {}, everything.episodes[:2], open_loop=True).save(demonstrations, overwrite=True)
    assert "expected at least 3 episodes" in refused(capsys, "train", demonstrations, "--out", tmp_path / "out.safetensors")


def test_one_log_of_named_observations_is_divided_in_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rng, steps = np.random.default_rng(0), 50
    angle, rate = rng.uniform(-1.0, 1.0, (2, steps + 1))
    seen = {
        "robot": {"pose": np.stack((np.cos(angle), np.sin(angle), rate), -1)},
        "camera": np.zeros((steps + 1, 2, 2), np.uint8),
    }
    data = Demonstrations.from_arrays(ENV, [seen], [rng.uniform(-1.0, 1.0, (steps, 1))])
    data.save_folder(tmp_path / "log")
    run("train", tmp_path / "log", "--learner", "mlp", "--epochs", "1", "--key", "robot/pose")
    assert "imitation loss on the last 10 steps" in capsys.readouterr().out
    assert (tmp_path / "log.safetensors").is_file()
    monkeypatch.chdir(tmp_path / "log")
    assert "log.safetensors exists already" in refused(capsys, "train", ".", "--key", "robot/pose")  # beside the folder
    said = refused(capsys, "train", tmp_path / "log", "--key", "pose", "--overwrite")
    assert "one of ['camera', 'robot/pose'], got no part 'pose'" in said


def test_no_episodes_to_evaluate_are_refused(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "episodes: expected at least 1" in refused(capsys, "evaluate", checkpoint, "-n", "0")


# Help.


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ((), ("expert", "train", "evaluate", "demo")),
        (("expert",), ("--out", "--episodes", "--horizon", "--physics", "--overwrite", "--seed")),
        (("train",), ("--out", "--learner", "--off-by", "--epochs", "--resume", "--overwrite", "Ctrl-C")),
        (("evaluate",), ("--episodes", "--seed", "PATH")),
        (("demo",), ("--out", "--episodes", "--epochs")),
    ],
)
def test_help_tells_the_arguments(command: tuple[str, ...], words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        run(*command, "--help")
    assert exit_.value.code == 0
    said = capsys.readouterr().out
    for word in words:
        assert word in said


@pytest.mark.parametrize("arguments", [(), ("fly",), ("train",), ("expert", ENV), ("evaluate", "a", "b")])
def test_a_wrong_command_line_ends_with_code_2(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        run(*arguments)
    assert exit_.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.slow
def test_the_console_script_is_installed(tmp_path: Path) -> None:
    script = Path(sys.executable).with_name("dilqr")
    done = subprocess.run([script, "evaluate", "nowhere"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "nowhere: there is no such file" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


# The demo.


@pytest.mark.slow
def test_the_demo_leaves_its_evidence_in_a_new_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import Image

    steps = 15  # enough for some actions off their bounds, which alone tell a learner anything
    register_environments()
    monkeypatch.setattr(gym.registry[ENV], "max_episode_steps", steps)
    (tmp_path / "demo").mkdir()
    run("demo", "--out", tmp_path / "demo", "--episodes", "3", "--evaluation-episodes", "2", "--epochs", "2")
    said = capsys.readouterr().out
    names = ["clone.safetensors", "demonstrations.npz", "learning.png", "swing_up.gif"]
    for word in ("expert", "clone before training", "clone after training", "network", *names):
        assert word in said
    steps_told = [said.index(f"{number}/6 ") for number in range(1, 7)]
    assert steps_told == sorted(steps_told)
    assert list((tmp_path / "demo").iterdir()) == []
    folder = tmp_path / "demo-2"
    assert sorted(path.name for path in folder.iterdir()) == names
    assert len(Demonstrations.load(folder / "demonstrations.npz")) == 3
    PhysicsLearner.load(folder / "clone.safetensors")
    with Image.open(folder / "swing_up.gif") as gif, Image.open(folder / "learning.png") as plot:
        assert getattr(gif, "n_frames", 1) == -(-(steps + 1) // 2)
        assert min(plot.size) > 300


_OWN = """
from dataclasses import replace
import gymnasium as gym
from dilqr_rl import register_task
from dilqr_rl.envs import pendulum_v1_task
gym.register("own/Swing-v0", "gymnasium.envs.classic_control.pendulum:PendulumEnv", max_episode_steps=5)
register_task("own/Swing-v0", lambda env: replace(pendulum_v1_task(env), name="own/Swing-v0"))
"""


def test_an_environment_of_ones_own_is_imported_by_the_person(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also from the working directory; a file never chooses what is imported."""
    (tmp_path / "own_swing.py").write_text(_OWN, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [part for part in sys.path if part])
    own = ("--import", "own_swing")
    assert "'own/Swing-v0'" in refused(capsys, "expert", "own/Swing-v0", "-n", "4", "--out", "own.npz")
    run("expert", "own/Swing-v0", "-n", "4", "--out", "own.npz", "--horizon", "4", *own)
    run("train", "own.npz", "--learner", "sysid", "--physics", "mass", "1.2", "--epochs", "1", *own)
    run("evaluate", "own.safetensors", "-n", "1", *own)
    said = refused(capsys, "evaluate", "own.safetensors", "-n", "1", "--import", "nobody_has_this")
    assert "--import: 'nobody_has_this' can't be imported: ModuleNotFoundError" in said


def test_several_modules_are_imported_in_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("first_of_two", "second_of_two"):
        (tmp_path / f"{name}.py").write_text("print(__name__)", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    run("explain", "--import", "first_of_two", "Pendulum-v1", "--import", "second_of_two")  # which takes no id for a module
    assert capsys.readouterr().out.split()[:2] == ["first_of_two", "second_of_two"]


def test_commands_run_on_one_thread(checkpoint: Path, short_episodes: int) -> None:
    torch.set_num_threads(2)
    run("evaluate", checkpoint, "-n", "1")
    assert torch.get_num_threads() == 1
