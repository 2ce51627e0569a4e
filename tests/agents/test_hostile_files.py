"""Small files that ask for much, or aren't what they seem: each ends in the promised error, before memory is asked for."""

from __future__ import annotations

import io
import json
import tempfile
import tracemalloc
import zipfile
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from learner_data import CHANGED, make, plans
from packaging.version import Version
from safetensors import safe_open
from safetensors.torch import save_file

from dilqr_rl.agents import CheckpointError, CostMap, Demonstrations, DemonstrationsError, MPCPolicy, MPCSACPolicy, MPCTD3Policy
from dilqr_rl.agents.environments import make_env
from dilqr_rl.agents.learners import LEARNERS, load_learner
from dilqr_rl.agents.size_limit import SizeLimit

ENV = "dilqr_rl/Pendulum-v0"
DEEP = "[" * 100_000
Tamper = Callable[[dict[str, Any]], Any]


def parts(path: Path) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    with safe_open(path, framework="pt") as file:
        return file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def tamper(path: Path, change: Tamper) -> None:
    metadata, tensors = parts(path)
    config = json.loads(metadata["config"])
    change(config)
    save_file(tensors, path, {**metadata, "config": json.dumps(config)})


@cache
def saved(name: str) -> bytes:
    """What `save` writes of a policy or of a learner."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "saved.safetensors")
        if name == "policy":
            MPCPolicy.for_env(make_env(ENV), horizon=4, cost_map=CostMap(), terminal_value=(4,)).save(path)
        else:
            make(name).save(path)
        return path.read_bytes()


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    (tmp_path / "p.safetensors").write_bytes(saved("policy"))
    return tmp_path / "p.safetensors"


def learner(name: str, folder: Path) -> Path:
    (folder / "l.safetensors").write_bytes(saved(name))
    return folder / "l.safetensors"


def settings(**changes: Any) -> Tamper:
    return lambda config: config["settings"].update(changes)


def network(**changes: Any) -> Tamper:
    return lambda config: config["network"].update(changes)


def refused(act: Callable[[], Any], error: type[Exception]) -> str | None:
    """What stands before the first colon of an error of this kind; None without one."""
    try:
        act()
    except error as caught:
        return str(caught).partition(": ")[0]
    return None


WIDE = [60_000, 60_000]
ASKED = "its settings ask for far more numbers than the"
MUCH = [
    settings(terminal_value=WIDE),
    settings(cost_map={"writes": ["goal"], "per_step": True, "hidden": WIDE}),
    settings(terminal_value=[1] * 20_000),
    network(net_arch={"pi": [], "vf": WIDE}),
    settings(horizon=10**9),
    settings(horizon=10**18),
]


@pytest.mark.parametrize("change", MUCH)
def test_a_policy_that_asks_for_much_is_refused(change: Tamper, policy: Path) -> None:
    tamper(policy, change)
    with pytest.raises(CheckpointError, match=f"{ASKED}|horizon: expected at most"):
        MPCPolicy.load(policy)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("mlp", settings(hidden=WIDE)),
        ("mlp", settings(horizon=10**10)),
        ("mlp", settings(hidden=[1000] * 5000)),
        ("nn", settings(width=60_000)),
        ("residual", settings(hidden=WIDE)),
        ("dx", settings(horizon=10**10)),
        ("dx", settings(horizon=10**10, starts=16)),
    ],
)
def test_a_learner_that_asks_for_much_is_refused(name: str, change: Tamper, tmp_path: Path) -> None:
    path = learner(name, tmp_path)
    tamper(path, change)
    with pytest.raises(CheckpointError):
        load_learner(path)


def test_tensors_without_numbers_pay_for_nothing(policy: Path) -> None:
    """A file may claim any shape that holds nothing."""
    tamper(policy, settings(terminal_value=WIDE))
    metadata, tensors = parts(policy)
    save_file({**tensors, "wide": torch.zeros(60_000, 0), "wider": torch.zeros(0, 60_000)}, policy, metadata)
    with pytest.raises(CheckpointError, match=ASKED):
        MPCPolicy.load(policy)


@pytest.mark.parametrize("kind", [MPCPolicy, MPCSACPolicy, MPCTD3Policy])
def test_an_honest_file_is_never_refused_for_its_size(kind: type[MPCPolicy], tmp_path: Path) -> None:
    """Wide networks, of more numbers than are free."""
    made = kind.for_env(make_env(ENV), horizon=4, net_arch=[1500, 1500, 1500], cost_map=CostMap(hidden=(1000, 1000)))
    assert sum(tensor.numel() for tensor in made.state_dict().values()) > 5_000_000
    made.save(tmp_path / "p.safetensors")
    kind.load(tmp_path / "p.safetensors")


@pytest.mark.parametrize("name", LEARNERS)
def test_nor_a_learner(name: str, tmp_path: Path) -> None:
    make(name, **{**CHANGED[name], **({"width": 1500} if name == "nn" else {})}).save(tmp_path / "l.safetensors")
    load_learner(tmp_path / "l.safetensors")


def test_the_limit_counts_before_memory_is_asked_for() -> None:
    with SizeLimit({"a": torch.zeros(3)}):
        torch.zeros(1000, 1000)
        for ask in (
            lambda: torch.empty(10**7, 10**7),
            lambda: torch.arange(10**15),
            lambda: torch.eye(10**8),
            lambda: torch.zeros(1).repeat(10**15),
            lambda: torch.nn.Linear(10**8, 10**8),
            lambda: torch.zeros(2).new_full((10**14,), 1.0),
        ):
            with SizeLimit({"a": torch.zeros(3)}), pytest.raises(ValueError, match=ASKED):
                ask()


TEXTS = [
    DEEP,
    "[" * 500 + "]" * 500,
    '{"settings": ' * 100_000,
    "1" * 100_000,
    '{"a": ' + "1" * 5000 + "}",
    "\ud800".encode("utf-8", "replace").decode(),
]


@pytest.mark.parametrize("text", TEXTS)
def test_texts_that_no_parser_bears_are_refused(text: str, policy: Path, tmp_path: Path) -> None:
    metadata, tensors = parts(policy)
    save_file(tensors, policy, {**metadata, "config": text})
    with pytest.raises(CheckpointError, match=f"{policy}: "):
        MPCPolicy.load(policy)
    path = learner("dx", tmp_path)
    metadata, tensors = parts(path)
    save_file(tensors, path, {**metadata, "config": text})
    with pytest.raises(CheckpointError, match=f"{path}: "):
        load_learner(path)


def nested(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


STRANGE: list[Any] = [None, 3, -1, 1e308, "x", [], {}, True, 10**400, [[]], {"a": {"b": []}}, float("nan"), nested(400)]


@pytest.mark.parametrize("value", STRANGE)
@pytest.mark.parametrize("where", ["env_id", "env_kwargs", "settings", "network", "task", "learner"])
def test_whatever_stands_in_a_setting_s_place(where: str, value: Any, policy: Path, tmp_path: Path) -> None:
    for path, load in ((policy, MPCPolicy.load), (learner("mlp", tmp_path), load_learner)):
        metadata, _ = parts(path)
        if where in json.loads(metadata["config"]) and json.loads(metadata["config"])[where] != value:
            tamper(path, lambda config: config.update({where: value}))
            with pytest.raises(CheckpointError):
                load(path)


@pytest.mark.parametrize("value", STRANGE)
@pytest.mark.parametrize("name", ["mlp", "nn", "dx", "residual", "lqr"])
def test_whatever_stands_in_a_learner_s_settings(name: str, value: Any, tmp_path: Path) -> None:
    """Refused, or, where it is a setting that the class takes, read; never another error."""
    path = learner(name, tmp_path)
    whole = path.read_bytes()
    for setting in json.loads(parts(path)[0]["config"])["settings"]:
        path.write_bytes(whole)
        tamper(path, settings(**{setting: value}))
        assert refused(lambda: load_learner(path), CheckpointError) in (None, str(path))


old_safetensors = pytest.mark.skipif(Version(version("safetensors")) < Version("0.7"), reason="it writes no complex numbers")


@pytest.mark.parametrize(
    "dtype", [torch.float8_e4m3fn, pytest.param(torch.complex64, marks=old_safetensors), torch.float8_e5m2]
)
def test_tensors_of_odd_types_are_refused(dtype: torch.dtype, policy: Path) -> None:
    metadata, tensors = parts(policy)
    name = next(name for name in tensors if "mass" in name)
    save_file({**tensors, name: tensors[name].to(dtype)}, policy, metadata)
    with pytest.raises(CheckpointError, match="mass"):
        MPCPolicy.load(policy)


# Demonstrations.


@pytest.fixture
def data(tmp_path: Path) -> Path:
    plans(3).save(tmp_path / "data.npz")
    return tmp_path / "data.npz"


def members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def put(path: Path, content: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> None:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, raw in content.items():
            archive.writestr(name, raw)


def array(value: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, value, allow_pickle=False)
    return stream.getvalue()


def test_a_little_that_becomes_much_is_refused(data: Path) -> None:
    """Consistent in all but its size: 2^22 steps of zeros."""
    steps = 2**22
    content = members(data)
    content["observations.npy"] = array(np.zeros((steps + 1, 3)))
    content["actions.npy"] = array(np.zeros((steps, 1)))
    content["rewards.npy"] = array(np.zeros(steps))
    content["lengths.npy"] = array(np.array([steps]))
    content["terminated.npy"] = content["truncated.npy"] = array(np.array([False]))
    put(data, content)
    assert data.stat().st_size < 2**18
    del content
    tracemalloc.start()
    with pytest.raises(DemonstrationsError, match=r"its \d+ bytes would become 167\d{6}, and nobody's measurements shrink so"):
        Demonstrations.load(data)
    assert tracemalloc.get_traced_memory()[1] < 10 * 2**20
    tracemalloc.stop()


def test_a_header_that_claims_more_than_there_is_is_refused(data: Path) -> None:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f8", "fortran_order": False, "shape": (10**12, 1)})
    put(data, {**members(data), "actions.npy": stream.getvalue() + bytes(144)})
    with pytest.raises(DemonstrationsError, match=r"no plain array, or one of \(1000000000000, 1\) in 272 bytes"):
        Demonstrations.load(data)


def test_methods_that_allocate_what_a_file_says_are_refused(data: Path) -> None:
    for method in (zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2):
        put(data, members(data), method)
        with pytest.raises(DemonstrationsError, match="packed by method"):
            Demonstrations.load(data)


HEADER = {"format": "dilqr_rl demonstrations", "version": 1, "env_id": ENV, "env_kwargs": {}, "open_loop": True}
ODD: list[tuple[str, bytes]] = [
    ("observations", b"no array"),
    ("actions", b""),
    ("actions", b"\x93NUMPY\x01\x00"),
    ("actions", b"\x93NUMPY\x09\x00" + b"x" * 99),
    ("rewards", b"\x80\x04cos\nsystem\n."),
    ("header", b"{}"),
    ("header", array(np.array(DEEP))),
    ("header", array(np.array('{"version": ' + "1" * 5000 + "}"))),
    ("header", array(np.array(json.dumps({**HEADER, "env_id": [1]})))),
    ("header", array(np.array(json.dumps({**HEADER, "env_kwargs": 3})))),
    ("header", array(np.array(json.dumps({**HEADER, "open_loop": 1})))),
    ("header", array(np.array([HEADER["format"]]))),
    ("header", array(np.zeros(3))),
    ("observations", array(np.zeros((21, 3), dtype=complex))),
    ("observations", array(np.zeros((21, 3), dtype="U3"))),
    ("observations", array(np.zeros((21, 3), dtype=bool))),
    ("observations", array(np.zeros((21, 3), dtype="datetime64[s]"))),
    ("observations", array(np.zeros((21,), dtype=[("a", float), ("b", int), ("c", bool)]))),
    ("terminated", array(np.array(["False"] * 3))),
    ("truncated", array(np.array([0, 1, 0]))),
    ("terminated", array(np.zeros(3, dtype=[("a", bool)]))),
    ("lengths", array(np.array([2**63 - 1, 2**63 - 1, 20], dtype=np.uint64))),
    ("lengths", array(np.array(["6", "6", "6"]))),
    ("lengths", array(np.zeros((3, 0), dtype=int))),
]


@pytest.mark.parametrize(("name", "raw"), ODD)
def test_members_that_are_no_arrays_or_odd_ones_are_refused(name: str, raw: bytes, data: Path) -> None:
    put(data, {**members(data), f"{name}.npy": raw})
    with pytest.raises(DemonstrationsError, match=r"data\.npz: "):
        Demonstrations.load(data)


def test_a_member_under_another_name_is_missing(data: Path) -> None:
    content = members(data)
    put(data, {**{name: raw for name, raw in content.items() if name != "actions.npy"}, "actions": content["actions.npy"]})
    with pytest.raises(DemonstrationsError, match=r"actions\.npy"):
        Demonstrations.load(data)


@pytest.mark.parametrize("dtype", [">f8", ">f4", "<f2", "longdouble", ">i4"])
def test_numbers_of_other_machines_are_read_as_ours(dtype: str, data: Path) -> None:
    observed = np.arange(21 * 3).reshape(21, 3) / 8  # which float16 holds, too
    observed = observed.round() if "i" in dtype else observed
    put(data, {**members(data), "observations.npy": array(observed.astype(dtype))})
    read = Demonstrations.load(data)
    np.testing.assert_array_equal(np.concatenate([episode.observations for episode in read.episodes]), observed)
    torch.as_tensor(read.episodes[0].observations)


def test_a_damaged_archive_is_refused_wherever_it_is_damaged(data: Path) -> None:
    whole = data.read_bytes()
    for place in range(0, len(whole), 61):
        damaged = bytearray(whole)
        damaged[place] ^= 0x55
        data.write_bytes(damaged)
        assert refused(lambda: Demonstrations.load(data), DemonstrationsError) in (None, str(data))
