"""The code of the pages in docs/ runs as it stands and prints what its comments say, the pictures are drawn, the figures are measured."""

from __future__ import annotations

import importlib
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
from PIL import Image
from scripts import load_script

from dilqr_rl import tasks
from dilqr_rl.agents import LEARNERS
from dilqr_rl.cli.bench import _benchmarks
from dilqr_rl.envs import ENVIRONMENTS

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "environments.md"
LEARNING = ROOT / "docs" / "learning.md"
POLICIES = ROOT / "docs" / "policies.md"
OWN = ROOT / "docs" / "own_environment.md"
RESULTS = ROOT / "docs" / "results.md"
ROBUSTNESS = ROOT / "docs" / "robustness.md"

if not PAGE.exists():
    pytest.skip("not in a checkout", allow_module_level=True)

TEXT = PAGE.read_text(encoding="utf-8")


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What the page registers with Gymnasium, and of models, is gone afterwards."""
    monkeypatch.setattr(tasks, "_registered", dict(tasks._registered))
    before = dict(gym.registry)
    yield
    gym.registry.clear()
    gym.registry.update(before)


def stepping() -> Any:
    _benchmarks()
    return importlib.import_module("benchmarks.stepping")


def robustness() -> Any:
    _benchmarks()
    return importlib.import_module("benchmarks.robustness")


def ppo() -> Any:
    _benchmarks()
    return importlib.import_module("benchmarks.ppo")


@pytest.mark.slow
@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("path", [PAGE, LEARNING, POLICIES, OWN], ids=lambda path: path.stem)
def test_a_page_s_code_prints_what_it_says(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    page = types.ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", page)  # classes that the page defines look their module up
    blocks = re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(blocks) > 5
    for block in blocks:
        exec(block, page.__dict__)
        expected = re.findall(r"^ *print\(.*\)  # (.*)$", block, flags=re.MULTILINE)
        assert len(expected) == block.count("print(")
        assert capsys.readouterr().out.splitlines() == expected
    if path == PAGE:
        assert (tmp_path / "videos" / "quadrotor-episode-0.mp4").stat().st_size > 1000


def test_the_page_on_learning_names_every_learner() -> None:
    for name, learner in LEARNERS.items():
        assert f"| `{name}` | `{learner.__name__}` |" in LEARNING.read_text(encoding="utf-8")


def test_the_page_names_every_id_and_its_picture() -> None:
    for env_id in ENVIRONMENTS:
        assert f"`{env_id}`" in TEXT
        assert f"(pictures/{env_id.partition('/')[2]}.png)" in TEXT
    for name in re.findall(r"\((pictures/.*?)\)", TEXT):
        assert (PAGE.parent / name).stat().st_size < 60_000
    headings = {
        re.sub(r"[^a-z -]", "", line.lower()).strip().replace(" ", "-") for line in re.findall("^#+ (.*)$", TEXT, re.MULTILINE)
    }
    assert set(re.findall(r"\(#(.*?)\)", TEXT)) <= headings


def test_the_page_names_every_preset_and_all_physics() -> None:
    for env_class in ENVIRONMENTS.values():
        assert all(f'`"{preset}"`' in TEXT for preset in env_class.presets)
        assert all(re.search(rf"\b{name}\b", TEXT) for name in env_class.dynamics_class.physics_names())


@pytest.mark.slow
def test_a_picture_for_every_id(tmp_path: Path) -> None:
    module = load_script(ROOT / "docs" / "draw_environments.py")
    files = module.main(module.Args(folder=tmp_path))
    assert [file.name for file in files] == [f"{env_id.partition('/')[2]}.png" for env_id in ENVIRONMENTS]
    for file in files:
        with Image.open(file) as picture, Image.open(PAGE.parent / "pictures" / file.name) as kept:
            assert picture.size == kept.size
            assert len(picture.getcolors(picture.width * picture.height) or ()) > 10


@pytest.mark.slow
def test_e8_a_quick_run_of_the_benchmark_has_every_cell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    benchmark, file = stepping(), tmp_path / "stepping.json"
    found = benchmark.main(benchmark.Args(quick=True, results=file))
    said = capsys.readouterr().out
    kept = benchmark.read(ROOT / "benchmarks" / "results" / "stepping.json")
    assert list(found["cells"]) == list(kept["cells"])
    assert all(record["times_as_fast"] > 0 for record in found["cells"].values())
    assert list(found["performance"]) == list(kept["performance"]) == ["Pendulum-v1", *ENVIRONMENTS]
    benchmark.main(benchmark.Args(report=True, results=file))
    assert capsys.readouterr().out == said
    with pytest.raises(ValueError, match=r"no results there yet. Run `python -m benchmarks.stepping` first"):
        benchmark.main(benchmark.Args(report=True, results=tmp_path / "none.json"))


def test_e8_a_ratio_is_the_median_over_rounds_in_which_both_did_their_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second round is a busy one. Ratios are 16, 16 and 8; that of the medians would be 8."""
    benchmark, clock = stepping(), [0.0]
    monkeypatch.setattr(benchmark, "time", types.SimpleNamespace(process_time=lambda: clock[0]))

    def block(units: int, *seconds: float) -> Any:
        takes = iter((1e6, *seconds))  # the first is compiling, and isn't timed
        return benchmark.Block(lambda: clock.append(clock.pop() + 1e3), lambda: clock.append(clock.pop() + next(takes)), units)

    blocks = {benchmark.PEER: block(2, 8.0, 80.0, 8.0), "ours": block(4, 1.0, 10.0, 2.0)}
    (cell,) = benchmark.compare("step", blocks, 3).values()
    assert (cell["times_as_fast"], cell["per_second"], cell["per_second_of_Pendulum-v1"]) == (16.0, 2.0, 0.25)
    assert (cell["id"], cell["rounds"], cell["wanted"]) == ("ours", 3, 1)


def test_the_page_s_figures_are_those_that_were_measured() -> None:
    benchmark = stepping()
    assert benchmark.markdown(benchmark.read(ROOT / "benchmarks" / "results" / "stepping.json")) in TEXT


@pytest.mark.slow
def test_a_quick_run_of_the_benchmark_of_ppo_has_every_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    benchmark, file = ppo(), tmp_path / "ppo.json"
    found = benchmark.main(benchmark.Args(quick=True, results=file))
    said = capsys.readouterr().out
    assert all(rate["steps_per_second"] > 0 for rates in found["speed"].values() for rate in rates.values())
    assert found["memory"]["predictions"] == 200
    benchmark.main(benchmark.Args(report=True, results=file))
    assert capsys.readouterr().out == said


@pytest.mark.slow
def test_p8_memory_is_flat_over_thousands_of_predictions() -> None:
    """Plans that were kept would be 0.5 kB each at least: 11 states of 3 and 10 controls, with their gains."""
    ppo().memory(300)  # what the first ones leave for good
    found = ppo().memory(3000)
    assert found["after_all"] - found["after_a_tenth"] < 1.0  # MB, of 2,700 plans


def test_the_page_s_figures_of_ppo_are_those_that_were_measured() -> None:
    benchmark = ppo()
    assert benchmark.markdown(benchmark.read(ROOT / "benchmarks" / "results" / "ppo.json")) in RESULTS.read_text(
        encoding="utf-8"
    )


@pytest.mark.slow
def test_a_quick_run_of_the_benchmark_of_robustness_has_every_cell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = robustness()
    found = module.main(module.Args(quick=True, only=("pendulum",), results=tmp_path / "robustness.json"))
    assert {(cell["horizon"], cell["case"]) for cell in found["cells"]} == {
        (horizon, case) for horizon in ("default", 20) for case in (*module.NOISE, *module.SYSTEMS["pendulum"].worlds)
    }
    assert [row["budget_ms"] for row in found["latency"]] == [None, 2.0]
    assert "| no noise |" in capsys.readouterr().out
    for cell in found["cells"]:
        assert cell["of"] == 2
        if cell["case"] in ("no noise", "0.5 deg"):
            assert cell["hangs"] == 0  # as none of the hundred of the page do
            assert cell["return"] > -400  # of one start; hanging costs 1000 and more


def test_the_page_on_robustness_has_what_was_measured() -> None:
    module = robustness()
    found = module.main(module.Args(report=True))
    page = ROBUSTNESS.read_text(encoding="utf-8")
    assert all(table in page for table in module.tables(found))
    assert {cell["system"] for cell in found["cells"]} == {row["system"] for row in found["latency"]} == set(module.SYSTEMS)
