"""A checkout, an editable installation and a wheel hold the same packages, and import alike from wherever the user stands."""

import importlib.metadata
import os
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest
from lowest_versions import lowest_pins, requirements
from packaging.utils import canonicalize_name

CHECKOUT = Path(__file__).parents[1]
needs_checkout = pytest.mark.skipif(
    not (CHECKOUT / "dilqr_rl" / "__init__.py").is_file(), reason="the suite runs on an installation, away from the checkout"
)


def package_folders() -> dict[str, Path]:
    """Each folder of ours with Python files in it, by the name of its package: all of dilqr_rl/, envs/ and agents/."""
    roots = {"dilqr_rl": "dilqr_rl", "envs": "dilqr_rl.envs", "agents": "dilqr_rl.agents"}
    return {
        ".".join((name, *file.relative_to(CHECKOUT / root).parts[:-1])): file.parent
        for root, name in roots.items()
        for file in (CHECKOUT / root).rglob("*.py")
    }


def python(*arguments: str, cwd: Path, **environment: str) -> str:
    """What a fresh interpreter prints, which must end well."""
    run = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


@needs_checkout
def test_every_folder_with_python_files_is_a_listed_package() -> None:
    listed = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    assert sorted(listed) == sorted(package_folders())


@needs_checkout
@pytest.mark.slow
def test_the_wheel_holds_our_files_and_nothing_else(tmp_path: Path) -> None:
    python("-m", "build", "--outdir", str(tmp_path), ".", cwd=CHECKOUT)  # by way of the sdist, so that one is whole too
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    folders = {name.replace(".", "/"): folder for name, folder in package_folders().items()}
    ours = {f"{name}/{file.name}" for name, folder in folders.items() for file in folder.glob("*.py")}
    assert held == ours | {"dilqr_rl/py.typed"}


def test_the_lowest_versions_are_the_lower_bounds(tmp_path: Path) -> None:
    pyproject = tmp_path / "pyproject.toml"
    text = """
        [build-system]
        requires = ["setuptools>=77"]
        [project]
        name = "dilqr_rl"
        dependencies = ["torch>=2.8,!=2.9.0", "minari[hdf5] >= 0.5.3"]
        [project.optional-dependencies]
        test = ["dilqr-rl[ray]", "pytest<10,>=8.1"]
        """
    pyproject.write_text(text, encoding="utf-8")
    assert lowest_pins(pyproject) == {"setuptools": "77", "torch": "2.8", "minari": "0.5.3", "pytest": "8.1"}

    pyproject.write_text(text.replace("pytest<10,>=8.1", "pytest<10"), encoding="utf-8")
    with pytest.raises(
        ValueError, match=r"pyproject.toml: expected one lower bound '>=' of pytest, got 'pytest<10'. Name one."
    ):
        lowest_pins(pyproject)


@needs_checkout
def test_the_pinned_set_lies_in_the_ranges() -> None:
    lines = (CHECKOUT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines)}
    for requirement in requirements(CHECKOUT / "pyproject.toml"):
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), requirement


@pytest.fixture
def shadows(tmp_path: Path) -> Path:
    """A user's folder with an `envs` and an `agents` of its own."""
    for name in ("envs", "agents"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise ImportError('the wrong one')")
    return tmp_path


IMPORT_ALL = """
import dilqr_rl, dilqr_rl.envs, dilqr_rl.agents
from dilqr_rl import MPCPolicy
assert MPCPolicy is dilqr_rl.agents.MPCPolicy
print(dilqr_rl.__file__)
"""


def test_the_installation_imports_in_a_folder_with_its_own_envs_and_agents(shadows: Path) -> None:
    python("-c", IMPORT_ALL, cwd=shadows)


def test_the_command_is_installed_and_imports() -> None:
    (command,) = importlib.metadata.entry_points(group="console_scripts", name="dilqr")
    assert callable(command.load())


@needs_checkout
def test_a_bare_checkout_imports_in_a_folder_with_its_own_envs_and_agents(shadows: Path) -> None:
    # -S leaves site-packages out and with it the hook of an editable installation; on PYTHONPATH, a plain folder, it gives the
    # dependencies alone.
    path = os.pathsep.join((str(CHECKOUT), sysconfig.get_path("platlib"), sysconfig.get_path("purelib")))
    imported = python("-S", "-c", IMPORT_ALL, cwd=shadows, PYTHONPATH=path)
    assert Path(imported.strip()) == CHECKOUT / "dilqr_rl" / "__init__.py"
