"""What uv.lock pins can be installed, without a compiler, by each Python that pyproject.toml allows."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from packaging.markers import Marker, default_environment
from packaging.specifiers import SpecifierSet
from packaging.tags import compatible_tags, cpython_tags
from packaging.utils import parse_wheel_filename

REPOSITORY = Path(__file__).parents[2]
LOCK = tomllib.loads((REPOSITORY / "uv.lock").read_text())
ALLOWED = SpecifierSet(tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["requires-python"])
MINORS = [minor for minor in range(30) if f"3.{minor}" in ALLOWED]
GLIBC = 28
"""Minor version of the oldest that is asked for: RHEL 8 has it."""

Package = dict[str, Any]


def runtime(*, minor: int, machine: str) -> list[Package]:
    """What operator, API and worker need there, without themselves."""
    environment = {
        **default_environment(),
        "implementation_name": "cpython",
        "platform_machine": machine,
        "platform_python_implementation": "CPython",
        "platform_system": "Linux",
        "python_full_version": f"3.{minor}.0",
        "python_version": f"3.{minor}",
        "sys_platform": "linux",
    }

    def needed(dependencies: list[dict[str, Any]]) -> Iterator[Package]:
        for wanted in dependencies:
            if "marker" not in wanted or Marker(wanted["marker"]).evaluate(environment):
                same = (package for package in LOCK["package"] if package["name"] == wanted["name"])
                yield next(package for package in same if wanted.get("version") in (None, package["version"]))

    ours = next(package for package in LOCK["package"] if package["name"] == "ingestion-operator")
    extras = ours["optional-dependencies"]
    found: list[Package] = []
    ahead = list(needed([*ours["dependencies"], *extras["operator"], *extras["api"], *extras["worker"]]))
    while ahead:
        package = ahead.pop()
        if package not in found and package is not ours:
            found.append(package)
            ahead += needed(package.get("dependencies", []))
    return found


def has_wheel(package: Package, *, minor: int, machine: str) -> bool:
    """Whether such a Linux can install it as it is."""
    platforms = [f"manylinux_2_{glibc}_{machine}" for glibc in range(5, GLIBC + 1)] + [f"manylinux2014_{machine}"]
    fit = {
        *cpython_tags((3, minor), platforms=platforms),
        *compatible_tags((3, minor), interpreter=f"cp3{minor}", platforms=platforms),
    }
    names = (unquote(urlsplit(wheel["url"]).path.rpartition("/")[2]) for wheel in package.get("wheels", []))
    return any(fit & parse_wheel_filename(name)[3] for name in names)


@pytest.mark.parametrize("minor", MINORS)
@pytest.mark.parametrize(("machine", "compiled"), [("x86_64", set()), ("aarch64", {"wordllama"})])
def test_nothing_is_compiled_but_what_the_pages_and_the_image_build_know(
    minor: int, machine: str, compiled: set[str]
) -> None:
    packages = runtime(minor=minor, machine=machine)
    assert len(packages) > 40
    assert {package["name"] for package in packages if not has_wheel(package, minor=minor, machine=machine)} == compiled


def test_the_pages_name_the_pythons_that_are_allowed() -> None:
    for page in ("README.md", "docs/install.md", "docs/local-cluster.md", "docs/decisions/0003-dependencies.md"):
        assert f"3.{MINORS[0]} to 3.{MINORS[-1]}" in (REPOSITORY / page).read_text(), page
