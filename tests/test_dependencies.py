"""What the library depends on: its oldest versions, their licences, and the versions that CI takes, are all on file.

`python -m tests.test_dependencies` writes `.ci/oldest.txt` and `.ci/licences.md` anew from pyproject.toml and from what
is installed, and `.ci/lock.txt` from what is installed.
"""

import importlib.metadata
import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
OLDEST, LICENCES, LOCK = (ROOT / ".ci" / name for name in ("oldest.txt", "licences.md", "lock.txt"))
DEV = "dev"


def requirements(*extras) -> dict[str, Requirement]:
    """The direct dependencies by name, sorted, of the library and of extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"]]
    for extra in extras or project["optional-dependencies"]:
        lines += project["optional-dependencies"][extra]
    found = sorted(map(Requirement, lines), key=lambda one: canonicalize_name(one.name))
    return {canonicalize_name(one.name): one for one in found}


def oldest() -> str:
    """The lowest version that each requirement admits, as constraints for pip."""
    lines = ["# pip install -e '.[dev]' -c .ci/oldest.txt: the oldest versions that pyproject.toml admits.\n"]
    for name, requirement in requirements().items():
        (version,) = (one.version for one in requirement.specifier if one.operator in (">=", "=="))
        lines.append(f"{name}=={version}\n")
    return "".join(lines)


def licence(name) -> str:
    """What an installed distribution says of its licence."""
    about = importlib.metadata.metadata(name)
    classified = [line.split(" :: ")[-1] for line in about.get_all("Classifier", []) if line.startswith("License ::")]
    said = about.get("License-Expression") or ", ".join(classified) or (about.get("License") or "").strip()
    return said.splitlines()[0] if said else "see its files"


def licences() -> str:
    """A table of what is needed to run, and to develop, with licences."""
    lines = ["# Licences of direct dependencies\n\nAs the distributions themselves state them.\n"]
    needed = requirements(DEV)
    at_run_time = {
        canonicalize_name(Requirement(line).name)
        for line in importlib.metadata.requires("maml-jax")
        if "extra ==" not in line
    }
    lines += ["\n| package | licence | for |\n| --- | --- | --- |\n"]
    for name in needed:
        lines.append(f"| {name} | {licence(name)} | {'use' if name in at_run_time else 'development'} |\n")
    return "".join(lines)


def lock() -> str:
    """The installed version of everything that the tests need, directly or not."""
    versions, todo, seen = {}, [("maml-jax", {DEV})], set()
    while todo:
        name, extras = todo.pop()
        for line in importlib.metadata.requires(name) or ():
            requirement = Requirement(line)
            wanted = [{"extra": extra} for extra in extras | {""}]
            if requirement.marker and not any(map(requirement.marker.evaluate, wanted)):
                continue
            key = canonicalize_name(requirement.name), frozenset(requirement.extras)
            if key not in seen:
                seen.add(key)
                versions[key[0]] = importlib.metadata.version(key[0]).split("+")[0]  # whatever it was built for
                todo.append((key[0], set(requirement.extras)))
    head = "# pip install -e '.[dev]' -c .ci/lock.txt: versions that all tests have passed with.\n"
    return head + "".join(f"{name}=={version}\n" for name, version in sorted(versions.items()))


def test_the_oldest_versions_are_those_of_pyproject():
    assert OLDEST.read_text() == oldest()


def test_every_requirement_has_both_bounds():
    for name, requirement in requirements().items():
        operators = {one.operator for one in requirement.specifier}
        assert operators in ({">=", "<"}, {"=="}) or name == "setuptools", requirement


def test_every_direct_dependency_has_a_licence_on_file():
    listed = re.findall(r"^\| ([\w.-]+) \| ([^|]+) \| (?:use|development) \|$", LICENCES.read_text(), re.MULTILINE)
    assert [name for name, _ in listed] == list(requirements(DEV))
    assert not [name for name, said in listed if not said.strip() or said.startswith("UNKNOWN")]


def test_the_lock_fits_what_pyproject_asks_for():
    locked = dict(line.split("==") for line in LOCK.read_text().splitlines() if not line.startswith("#"))
    for name, requirement in requirements(DEV).items():
        assert requirement.specifier.contains(locked[name]), name


if __name__ == "__main__":
    for path, text in {OLDEST: oldest(), LICENCES: licences(), LOCK: lock()}.items():
        path.write_text(text)
