"""A vector environment as SB3 sees it is SB3's own DummyVecEnv of the same environments."""

from __future__ import annotations

from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from stable_baselines3 import PPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecFrameStack, VecMonitor, VecNormalize, VecTransposeImage

from dilqr_rl.agents import SB3VecEnv
from dilqr_rl.agents.environments import make_env
from dilqr_rl.envs.pendulum import PendulumVectorEnv

COUNT = 3
SAME_STEP = {"autoreset_mode": AutoresetMode.SAME_STEP}


class Tally(gym.Env[dict[str, np.ndarray], int]):
    """Ends or is cut off after a few steps, with images, several observations, and infos that come and go."""

    metadata = {"render_modes": ["rgb_array"]}

    def __init__(self, image_only: bool = False, render_mode: str | None = None) -> None:
        spaces = {"image": gym.spaces.Box(0, 255, (36, 36, 1), np.uint8), "count": gym.spaces.Box(0.0, 9.0, (1,), np.float32)}
        self.observation_space = spaces["image"] if image_only else gym.spaces.Dict(spaces)
        self.action_space = gym.spaces.Discrete(3)
        self.render_mode = render_mode
        self.image_only = image_only
        self.level = 0

    def observe(self) -> Any:
        image = np.full((36, 36, 1), 20 * self.count, np.uint8)
        return image if self.image_only else {"image": image, "count": np.array([self.count], np.float32)}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.count = options["count"] if options else int(self.np_random.integers(3))
        return self.observe(), {"started": self.count, "level": self.level}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.count += int(action)
        info: dict[str, Any] = {"_private": self.count, "nested": {"place": np.arange(2.0) + self.count, "deep": {"word": "a"}}}
        if self.count % 2:
            info["odd"] = {"count": self.count, "why": [self.count]}
        return self.observe(), 0.1 * self.count, self.count == 6, self.count > 6, info

    def render(self) -> np.ndarray:
        return np.full((4, 4, 3), self.count, np.uint8)

    def raise_level(self, by: int) -> int:
        self.level += by
        return self.level


OURS: dict[str, tuple[str, dict[str, Any]]] = {
    "pendulum": ("dilqr_rl/Pendulum-v0", {"max_episode_steps": 6, "randomize": {"length": (0.5, 1.5)}}),
    "cart": ("dilqr_rl/CartPole-v0", {"max_episode_steps": 8, "max_rate": 3.0}),  # terminates or is cut off
    "pixels": ("dilqr_rl/PendulumPixels-v0", {"max_episode_steps": 6, "grey": True, "size": 36}),
}
MAKERS = {
    **{name: partial(make_env, env_id, env_kwargs) for name, (env_id, env_kwargs) in OURS.items()},
    "discrete": partial(gym.make, "CartPole-v1", max_episode_steps=15),
    "tally": Tally,
    "image": partial(Tally, image_only=True),
}
each_environment = pytest.mark.parametrize("name", [*MAKERS, *(f"native {name}" for name in OURS)])


def both(name: str, count: int = COUNT) -> tuple[SB3VecEnv, DummyVecEnv]:
    """Ours, of single environments or of a native batch, beside SB3's own."""
    kind = name.removeprefix("native ")
    makers = [MAKERS[kind]] * count
    if kind == name:
        return SB3VecEnv(SyncVectorEnv(makers, **SAME_STEP)), DummyVecEnv(makers)
    env_id, env_kwargs = OURS[kind]
    return SB3VecEnv.make(env_id, count, **env_kwargs), DummyVecEnv(makers)


def assert_same(one: Any, other: Any) -> None:
    """Equal through dicts and lists, to the last bit."""
    if isinstance(other, dict):
        assert one.keys() == other.keys()
        for key, value in other.items():
            assert_same(one[key], value)
    elif isinstance(other, list):
        for first, second in zip(one, other, strict=True):
            assert_same(first, second)
    elif isinstance(other, np.ndarray):
        np.testing.assert_array_equal(one, other, strict=True)
    else:
        assert one == other
        assert isinstance(one, type(other)) or type(other).__module__ == "numpy"


def assert_same_steps(ours: VecEnv, theirs: VecEnv, steps: int) -> int:
    """Walk both with the same random actions; the number of episodes that ended."""
    generator = np.random.default_rng(0)
    assert_same(ours.reset(), theirs.reset())
    assert_same(ours.reset_infos, theirs.reset_infos)
    ends = 0
    for _ in range(steps):
        if isinstance(ours.action_space, gym.spaces.Discrete):
            actions = generator.integers(ours.action_space.n, size=ours.num_envs)
        else:
            actions = generator.uniform(-1, 1, (ours.num_envs, *ours.action_space.shape)).astype(np.float32)
        for one, other in zip(ours.step(actions), theirs.step(actions), strict=True):
            one, other = (
                [{k: v for k, v in info.items() if k != "episode"} for info in x] if isinstance(x, list) else x
                for x in (one, other)
            )
            assert_same(one, other)
        assert_same(ours.reset_infos, theirs.reset_infos)
        ends += sum("terminal_observation" in info for info in one)
    return ends


@each_environment
def test_steps_like_sb3s_own_across_ends(name: str) -> None:
    ours, theirs = both(name)
    assert (ours.observation_space, ours.action_space) == (theirs.observation_space, theirs.action_space)
    for venv in (ours, theirs):
        venv.seed(5)
    assert assert_same_steps(ours, theirs, 40) > COUNT
    ours.close()
    ours.close()


@pytest.mark.parametrize("name", ["cart", "native cart"])
def test_one_environment_alone(name: str) -> None:
    ours, theirs = both(name, count=1)
    ours.seed(1)
    theirs.seed(1)
    assert assert_same_steps(ours, theirs, 30) > 1


def test_processes_of_their_own() -> None:
    ours, theirs = SB3VecEnv(AsyncVectorEnv([MAKERS["cart"]] * 2, **SAME_STEP)), DummyVecEnv([MAKERS["cart"]] * 2)
    ours.seed(3)
    theirs.seed(3)
    assert assert_same_steps(ours, theirs, 20) > 1
    assert ours.get_attr("render_mode") == [None, None]
    ours.close()


def normalised(venv: VecEnv) -> VecEnv:
    return VecNormalize(venv, gamma=0.9)


def stacked(venv: VecEnv) -> VecEnv:
    return VecFrameStack(venv, n_stack=3)


def transposed(venv: VecEnv) -> VecEnv:
    return VecTransposeImage(VecFrameStack(venv, n_stack=2, channels_order="last"))


@pytest.mark.parametrize(
    ("name", "wrap"),
    [
        ("cart", VecMonitor),
        ("native cart", VecMonitor),
        ("native cart", normalised),
        ("native pendulum", stacked),
        ("image", transposed),
        ("native pixels", transposed),
    ],
)
def test_under_sb3s_wrappers(name: str, wrap: Any) -> None:
    ours, theirs = (wrap(venv) for venv in both(name))
    ours.seed(2)
    theirs.seed(2)
    assert assert_same_steps(ours, theirs, 30) > COUNT


@pytest.mark.parametrize("name", ["pendulum", "native pendulum", "native pixels"])
def test_nothing_is_shared_between_steps_and_environments(name: str) -> None:
    ours, _ = both(name)
    ours.seed(0)
    seen: list[np.ndarray] = [ours.reset()]
    for _ in range(8):
        observations, rewards, ends, infos = ours.step(np.zeros((COUNT, 1), np.float32))
        seen += [observations, rewards, ends, *(info["state"] for info in infos)]
        seen += [info["terminal_observation"] for info in infos if "terminal_observation" in info]
        infos[0]["physics"]["mass"] = infos[0]["state"][:] = 7.0
        assert infos[1]["physics"]["mass"] == 1.0
    for number, one in enumerate(seen):
        assert not any(np.shares_memory(one, other) for other in seen[:number])


def test_seeds_and_options_are_used_once() -> None:
    ours, theirs = both("tally")
    for venv in (ours, theirs):
        venv.set_options({"count": 4})
        venv.reset()
    assert [info["started"] for info in ours.reset_infos] == [4] * COUNT
    assert_same(ours.reset_infos, theirs.reset_infos)
    assert ours.seed(9) == theirs.seed(9) == [9, 10, 11]
    assert_same(ours.reset(), theirs.reset())
    assert_same(ours.reset(), theirs.reset())  # goes on with the same generators
    with pytest.raises(ValueError, match=r"options: expected one dict for all environments, got \[{}, {}, {}\]\."):
        ours.set_options([{}, {}, {}])


def test_returns_that_gymnasium_counts_are_where_sb3_looks() -> None:
    ours = SB3VecEnv(gym.wrappers.vector.RecordEpisodeStatistics(SyncVectorEnv([MAKERS["pendulum"]] * 2, **SAME_STEP)))
    ours.reset()
    for step in range(1, 7):
        _, _, _, infos = ours.step(np.ones((2, 1), np.float32))
        assert ["episode" in info for info in infos] == [step == 6] * 2
    assert infos[0]["episode"]["l"] == 6
    assert not any("episode" in info for info in ours.reset_infos)


def test_attributes_and_methods_of_single_environments() -> None:
    ours, _ = both("tally")
    assert ours.get_attr("level") == [0] * COUNT
    assert ours.get_attr("level", indices=1) == [0]
    ours.set_attr("level", 3)
    ours.set_attr("level", 5, indices=[0, 2])
    assert ours.get_attr("level") == [5, 3, 5]
    assert ours.env_method("raise_level", by=1) == [6, 4, 6]
    assert ours.env_is_wrapped(gym.Wrapper) == [False] * COUNT
    assert not ours.has_attr("nonsense")
    with pytest.raises(ValueError, match=r"indices: expected None, since SyncVectorEnv.* calls .* all .*, got 0\."):
        ours.env_method("raise_level", indices=0)


class Native(VectorEnv[Any, Any, Any]):
    """A vector environment that isn't made of single ones, and gives no masks and no infos of ends."""

    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}

    def __init__(self) -> None:
        self.num_envs = 2
        self.single_observation_space = gym.spaces.Box(0, 9, (1,))
        self.single_action_space = gym.spaces.Discrete(2)
        self.gravity = 9.8

    def step(self, actions: Any) -> Any:
        observations = np.ones((2, 1), np.float32)
        infos = {"final_obs": 2 * observations, "_final_obs": np.array([False, True]), "count": np.arange(2)}
        return observations, np.ones(2), np.array([False, True]), np.zeros(2, bool), infos


def test_a_batch_that_is_not_made_of_single_environments() -> None:
    ours = SB3VecEnv(Native())
    _, _, ends, infos = ours.step(np.zeros(2))
    assert ends.tolist() == [False, True]
    assert infos[0] == {"count": 0, "TimeLimit.truncated": False}
    assert infos[1] == {"terminal_observation": [2.0], "TimeLimit.truncated": False}
    assert ours.reset_infos == [{}, {"count": 1}]
    assert ours.get_attr("gravity") == [9.8, 9.8]
    assert ours.get_attr("render_mode", indices=0) == [None]
    with pytest.raises(AttributeError, match=r"Native.* isn't made of single environments"):
        ours.set_attr("gravity", 1.0)
    with pytest.raises(AttributeError, match=r"Native.* isn't made of single environments"):
        ours.env_method("anything")


def test_pictures() -> None:
    ours = SB3VecEnv(SyncVectorEnv([partial(Tally, render_mode="rgb_array")] * 4, **SAME_STEP))
    ours.set_options({"count": 3})
    ours.reset()
    assert [image.shape for image in ours.get_images()] == [(4, 4, 3)] * 4
    np.testing.assert_array_equal(ours.render(), np.full((8, 8, 3), 3, np.uint8))
    assert both("tally")[0].get_images() == [None] * COUNT


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED])
def test_only_same_step_autoreset(mode: AutoresetMode) -> None:
    envs = SyncVectorEnv([Tally], autoreset_mode=mode)
    with pytest.raises(
        ValueError, match=rf"vector_env: expected autoreset within the same step.*got {mode}\. Make it by SB3VecEnv\.make"
    ):
        SB3VecEnv(envs)


def test_only_vector_environments_with_arrays_of_their_own() -> None:
    with pytest.raises(ValueError, match=r"vector_env: expected a gymnasium\.vector\.VectorEnv, .* got <.*Tally"):
        SB3VecEnv(Tally())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"vector_env: expected new arrays at every step, got copy=False\."):
        SB3VecEnv(SyncVectorEnv([Tally], copy=False, **SAME_STEP))


def test_make_by_id() -> None:
    native = SB3VecEnv.make("dilqr_rl/Pendulum-v0", 2, physics={"mass": 0.5}, render_mode="rgb_array")
    assert (
        type(native.vector_env) is type(SB3VecEnv.make("dilqr_rl.envs:dilqr_rl/Pendulum-v0", 2).vector_env) is PendulumVectorEnv
    )
    assert native.spec is not None
    native.spec.to_json()
    native.reset()
    assert [info["physics"]["mass"] for info in native.reset_infos] == [0.5, 0.5]
    assert native.render_mode == "rgb_array"
    assert native.render().shape == (1000, 500, 3)
    ours = SB3VecEnv.make("Pendulum-v1", 2, g=9.81)
    assert ours.get_attr("g") == [9.81, 9.81]
    with pytest.raises(ValueError, match=r"env_id: 'Nonsense-v1' can't be made with {}: "):
        SB3VecEnv.make("Nonsense-v1", 2)
    with pytest.raises(ValueError, match=r"env_id: 'Pendulum-v1' can't be made with {'colour': 3}: "):
        SB3VecEnv.make("Pendulum-v1", 2, colour=3)
    with pytest.raises(ValueError, match=r"num_envs: expected an integer of at least 1, got 0\."):
        SB3VecEnv.make("Pendulum-v1", 0)


@pytest.mark.parametrize("name", ["cart", "native cart"])
def test_stock_ppo_learns_alike(name: str) -> None:
    returns = []
    for venv in both(name):
        model = PPO("MlpPolicy", VecMonitor(venv), n_steps=16, batch_size=16, n_epochs=2, seed=0).learn(96)
        assert len(model.ep_info_buffer) > 3
        returns.append(evaluate_policy(model, model.get_env(), n_eval_episodes=4))
    assert returns[0] == returns[1]
