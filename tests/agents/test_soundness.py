"""Numbers with which nothing can be planned are found where they arise, when they are kept and when they are read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from learner_data import make, plans, quick, tensors
from safetensors import safe_open
from safetensors.torch import save_file
from stable_baselines3 import A2C, PPO, SAC, TD3

from dilqr_rl.agents import CheckpointError, MPCPolicy
from dilqr_rl.agents.environments import make_env
from dilqr_rl.agents.learners import load_learner
from dilqr_rl.agents.soundness import unsound_values

ENV = "dilqr_rl/Pendulum-v0"
MASS = "dynamics.parametrizations.mass.original"
NOTHING = {
    "mass": [(800.0, "dynamics.mass = inf"), (-800.0, "dynamics.mass = 0")],  # exp of it, in float64
    "weights": [(800.0, "stage_cost.weights = inf"), (-800.0, "stage_cost.weights = 0")],
}
RAW = [(name, raw, said) for name, pairs in NOTHING.items() for raw, said in pairs]


def policy() -> MPCPolicy:
    return MPCPolicy.for_env(make_env(ENV), horizon=4, learn=("physics", "weights"))


def spoil(module: torch.nn.Module, name: str, raw: float) -> None:
    (found,) = [p for key, p in module.named_parameters() if key.endswith(f"{name}.original")]
    with torch.no_grad():
        found.view(-1)[0] = raw


def rewrite(path: Path, name: str, raw: float) -> None:
    with safe_open(path, framework="pt") as file:
        metadata, kept = file.metadata(), {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118
    (found,) = [key for key in kept if key.endswith(f"{name}.original")]
    kept[found].view(-1)[0] = raw
    save_file(kept, path, metadata)


@pytest.mark.parametrize("raw", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", ["policy", "learner"])
def test_nan_is_refused_on_writing_in_the_words_of_reading(kind: str, raw: float, tmp_path: Path) -> None:
    module: Any = policy() if kind == "policy" else make("dx")
    path, said = tmp_path / "good.safetensors", []
    module.save(path)
    good = path.read_bytes()
    rewrite(path, "mass", raw)
    with pytest.raises(CheckpointError) as caught:
        MPCPolicy.load(path) if kind == "policy" else load_learner(path)
    said.append(str(caught.value))
    path.write_bytes(good)
    spoil(module, "mass", raw)
    with pytest.raises(CheckpointError, match=r"mass\.original'\] hold NaN or infinity") as caught:
        module.save(path, overwrite=True)
    assert said == [str(caught.value)]
    assert path.read_bytes() == good
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("name", "raw", "said"), RAW)
def test_finite_numbers_whose_physics_are_not_are_refused(name: str, raw: float, said: str, tmp_path: Path) -> None:
    path, module = tmp_path / "policy.safetensors", policy()
    module.save(path)
    rewrite(path, name, raw)
    with pytest.raises(CheckpointError, match=f"{path}: {said}: expected finite numbers, and above 0 what must be"):
        MPCPolicy.load(path)
    spoil(module, name, raw)
    with pytest.raises(CheckpointError, match=f"{path}: {said}: expected finite numbers, and above 0 what must be"):
        module.save(path, overwrite=True)


@pytest.mark.parametrize(("raw", "said"), NOTHING["mass"])
def test_the_same_of_a_learner(raw: float, said: str, tmp_path: Path) -> None:
    path, module = tmp_path / "learner.safetensors", make("residual", learn=["dynamics.known.mass"], physics={})
    module.save(path)
    rewrite(path, "mass", raw)
    for act in (lambda: load_learner(path), lambda: module.save(path, overwrite=True)):
        spoil(module, "mass", raw)
        assert not module.is_sound()
        with pytest.raises(CheckpointError, match=said.replace("dynamics", "dynamics.known")):
            act()


def test_a_share_may_be_one_but_not_zero() -> None:
    learner = make("cost", bounded_weights=True, weights=[0.3, 0.4, 0.5, 0.6])
    spoil(learner, "weights", 800.0)
    assert unsound_values(learner) == {}
    spoil(learner, "weights", -800.0)
    assert unsound_values(learner) == {"planner.problem.stage_cost.weights": 0.0}


@pytest.mark.parametrize(
    ("algorithm", "settings"),
    [
        (PPO, {"n_steps": 32, "batch_size": 32, "learning_rate": 1e5}),
        (A2C, {"learning_rate": 1e5}),
        (SAC, {"learning_starts": 8, "learning_rate": 1e6}),
        (TD3, {"learning_starts": 8, "learning_rate": 1e6}),
    ],
)
def test_a_huge_rate_ends_with_a_message_and_the_last_good_state(algorithm: Any, settings: Any, tmp_path: Path) -> None:
    chosen = {"task": ENV, "horizon": 4, "learn": ("physics", "weights"), "model_rate": 3.0}
    model = algorithm("MPCPolicy", make_env(ENV), policy_kwargs=chosen, seed=0, **settings)
    with pytest.raises(
        FloatingPointError, match=r"training: .* The step was not taken.*can be saved\. Lower the learning rate"
    ):
        model.learn(200)
    assert not unsound_values(model.policy)
    assert all(bool(tensor.isfinite().all()) for tensor in model.policy.state_dict().values())
    model.policy.save(tmp_path / "policy.safetensors")
    type(model.policy).load(tmp_path / "policy.safetensors")
    model.policy.predict(model.env.reset())
    for group in model.policy.optimizer.param_groups if hasattr(model.policy, "optimizer") else []:
        assert group["lr"] == settings["learning_rate"]  # and not multiplied by the model's rate for good


def test_a_step_that_is_taken_back_changes_nothing() -> None:
    module = policy()
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    module.optimizer.step()
    before, moments = tensors(module), json.dumps(str(module.optimizer.state_dict()["state"]))
    next(iter(module.parameters())).grad.view(-1)[0] = float("nan")
    with pytest.raises(FloatingPointError, match="the gradient holds NaN or infinity"):
        module.optimizer.step()
    assert json.dumps(str(module.optimizer.state_dict()["state"])) == moments
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    module.optimizer.param_groups[1]["lr"] = module.optimizer.param_groups[0]["lr"] = 1e5
    with pytest.raises(FloatingPointError, match=r"dynamics\.mass = 0"):
        module.optimizer.step()
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_a_fit_whose_physics_vanish_ends_and_says_which(caplog: pytest.LogCaptureFixture) -> None:
    learner = make("dx")
    result = learner.fit(plans(5), plans(2, seed=1), quick("adam", learning_rate=1e4, scan_rounds=0))
    assert result.stopped == "diverged"
    (said,) = [message for message in caplog.messages if "the fit ends" in message]
    assert "dynamics." in said
    assert f"The best so far stays, of epoch {result.best_epoch}." in said
    assert learner.is_sound()
