"""Imports run one way: the core knows neither environments nor agents, nor do these two know each other."""

import ast
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

CORE = {"dilqr_rl", "dilqr_rl.native", "torch", "numpy"}
NATIVE = CORE | {"numba", "llvmlite"}  # numba brings llvmlite
ENVS = CORE | {"dilqr_rl.envs", "gymnasium", "pygame"}
AGENTS = CORE | {"dilqr_rl.agents", "gymnasium", "rich", "safetensors", "stable_baselines3"}
ALLOWED = {  # beside the standard library
    "dilqr_rl": CORE,
    "dilqr_rl.native": NATIVE,
    "dilqr_rl.envs": ENVS,
    "dilqr_rl.agents": AGENTS,
    "dilqr_rl.experiments": ENVS | AGENTS | {"dilqr_rl.experiments", "matplotlib", "ray"},
    "dilqr_rl.cli": ENVS | AGENTS | {"dilqr_rl.cli", "dilqr_rl.experiments", "matplotlib", "PIL", "rich", "tqdm", "tyro"},
}
LAZY = {
    "dilqr_rl": {"dilqr_rl.agents"},  # `from dilqr_rl import MPCPolicy` fetches it on first use
    "dilqr_rl.agents.contrib": {"sb3_contrib"},  # an extra, which a user's own import of this module asks for
}


def modules() -> dict[str, Path]:
    """Every module of the installation under test: its name and its file."""
    found = {}
    for package in ALLOWED:
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            raise ModuleNotFoundError(f"{package} isn't there, so its imports can't be walked")
        folder = Path(spec.origin).parent
        for file in folder.rglob("*.py"):
            parts = file.relative_to(folder).with_suffix("").parts
            found[".".join((package, *parts)).removesuffix(".__init__")] = file
    return found


def layer(name: str) -> str:
    """The layer that a module or an object of ours belongs to, or the top-level name of another package."""
    if name == "dilqr_rl.MPCPolicy":
        return "dilqr_rl.agents"
    ours = [package for package in ALLOWED if f"{name}.".startswith(f"{package}.")]
    return max(ours, key=len) if ours else name.partition(".")[0]


def named_imports(tree: ast.AST) -> set[str]:
    """What a source file imports, anywhere in it, by its whole name; "." for a relative import, which none may have."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {"." if node.level else f"{node.module}.{alias.name}" for alias in node.names}
    return names


def imports(tree: ast.AST) -> set[str]:
    """The layers and packages that a source file imports."""
    names = named_imports(tree)
    return {"." if name == "." else layer(name) for name in names} - sys.stdlib_module_names


def misfits(tree: ast.AST) -> list[str]:
    """What a library leaves to its caller: printing, ending the process, checks that `python -O` drops."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Assert):
            found.append(f"line {node.lineno}: assert")
        elif isinstance(node, (ast.Name, ast.Attribute)):
            name = ast.unparse(node)
            if name in {"print", "exit", "quit", "sys.exit", "os._exit", "SystemExit"}:
                found.append(f"line {node.lineno}: {name}")
    return found


MODULES = modules()


@pytest.mark.parametrize("name", MODULES)
def test_a_module_imports_only_what_its_layer_may(name: str) -> None:
    tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
    assert imports(tree) <= ALLOWED[layer(name)] | LAZY.get(name, set())


def test_what_asks_for_an_extra_is_imported_by_its_users_alone() -> None:
    named = {name: named_imports(ast.parse(file.read_text(encoding="utf-8"))) for name, file in MODULES.items()}
    assert [name for name in named if any("agents.contrib" in one for one in named[name])] == []


@pytest.mark.parametrize("name", [name for name in MODULES if layer(name) != "dilqr_rl.cli"])
def test_a_library_module_neither_prints_nor_exits_nor_asserts(name: str) -> None:
    assert misfits(ast.parse(MODULES[name].read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("def f():\n    import pygame.gfxdraw", "pygame"),
        ("from dilqr_rl import envs", "dilqr_rl.envs"),
        ("from dilqr_rl.envs.pendulum import PendulumDynamics", "dilqr_rl.envs"),
        ("from dilqr_rl import MPCPolicy", "dilqr_rl.agents"),
        ("import dilqr_rl.cli", "dilqr_rl.cli"),
        ("from envs import pendulum", "envs"),
        ("from . import costs", "."),
        ("from .costs import QuadraticCost", "."),
    ],
)
def test_the_walk_sees_every_way_to_import(source: str, found: str) -> None:
    assert imports(ast.parse(source)) == {found}
    assert found not in CORE


def test_importing_the_core_loads_no_renderer_no_plots_and_no_learning_library(tmp_path: Path) -> None:
    code = "import dilqr_rl, json, sys; print(json.dumps(sorted(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    loaded = set(json.loads(run.stdout))
    assert "dilqr_rl.problem" in loaded
    unwanted = {"pygame", "matplotlib", "stable_baselines3", "gymnasium", "numba", *ALLOWED} - {"dilqr_rl", "dilqr_rl.native"}
    assert not loaded & unwanted
