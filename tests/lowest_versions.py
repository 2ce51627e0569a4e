"""The oldest releases that pyproject.toml allows of what it asks for by name: one pin a line, for `make lowest`."""

import tomllib
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def requirements(pyproject: Path) -> Iterator[Requirement]:
    """What the file asks for, to build with, to run with and in every extra; without the project's own extras."""
    table = tomllib.loads(pyproject.read_text(encoding="utf-8"))
    project = table["project"]
    extras = project["optional-dependencies"].values()
    for line in (*table["build-system"]["requires"], *project["dependencies"], *(line for extra in extras for line in extra)):
        requirement = Requirement(line)
        if canonicalize_name(requirement.name) != canonicalize_name(project["name"]):
            yield requirement


def lowest_pins(pyproject: Path) -> dict[str, str]:
    """The lower bound of each requirement, by its name.

    Raises:
        ValueError: a requirement has no bound `>=`, or more than one.
    """
    pins = {}
    for requirement in requirements(pyproject):
        lowest = [bound.version for bound in requirement.specifier if bound.operator == ">="]
        if len(lowest) != 1:
            raise ValueError(
                f"{pyproject.name}: expected one lower bound '>=' of {requirement.name}, got '{requirement}'. Name one."
            )
        pins[requirement.name] = lowest[0]
    return pins


if __name__ == "__main__":
    for name, version in lowest_pins(Path(__file__).parents[1] / "pyproject.toml").items():
        print(f"{name}=={version}")
