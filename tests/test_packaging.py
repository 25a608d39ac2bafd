"""Wheel, sdist and editable install hold all that they should and nothing else, and work."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

pytestmark = [pytest.mark.packaging, pytest.mark.timeout(600)]

ROOT = Path(__file__).parent.parent
ROOTS = ("core", "transports", "contrib")
BASE = {"pluggy", "msgspec"}
IMPORT_ALL = """
import importlib, importlib.metadata as metadata, json, sys
import switchgear
entries = list(metadata.entry_points(group="switchgear.transports"))
print(json.dumps({
    "distributions": sorted({d.name.lower() for d in metadata.distributions()} - {"pip", "setuptools", "wheel"}),
    "schemes": sorted(e.name for e in entries),
    "memory": switchgear.Bus("memory://").health().live is not None,
    "where": switchgear.__file__,
    "kafka": importlib.import_module("switchgear_kafka").KafkaTuning().scheme,
    "clients": sorted({"redis", "sqlalchemy", "typer", "rich", "pydantic"} & set(sys.modules)),
}))
"""

OPEN_REDIS = """
from switchgear import TransportNotFound
from switchgear.plugins import open_transport
try:
    open_transport("redis://localhost")
except TransportNotFound as error:
    print(error)
"""


def packages() -> dict[str, Path]:
    """Every package of the three source roots."""
    return {path.parent.name: path.parent for root in ROOTS for path in (ROOT / root).glob("*/__init__.py")}


def files(tree: Path) -> set[str]:
    """The files of every package, relative to their source root."""
    return {p.relative_to(tree / root).as_posix() for root in ROOTS for p in (tree / root).rglob("*") if p.is_file()}


def run(*command: str | Path, cwd: Path | None = None) -> str:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, cwd=cwd)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, set[str]]:
    """A copy of the project with the litter that a day's work leaves in it, and the files that it held before."""
    tree = tmp_path_factory.mktemp("packaging") / "switchgear"
    litter = shutil.ignore_patterns("__pycache__", ".*", "*.db", "*.db-*")
    for root in (*ROOTS, "tests"):
        shutil.copytree(ROOT / root, tree / root, ignore=litter)
    for name in ("pyproject.toml", "README.md", "LICENSE", ".gitignore"):
        shutil.copy(ROOT / name, tree / name)
    sources = files(tree)
    for name in packages():
        folder = next(tree.glob(f"*/{name}"))
        (folder / "__pycache__").mkdir()
        (folder / "__pycache__" / "left.cpython-311.pyc").write_bytes(b"")
        for stray in ("left.db", "left.db-wal", "left.log"):
            (folder / stray).write_bytes(b"")
    return tree, sources


@pytest.fixture(scope="module")
def tree(project: tuple[Path, set[str]]) -> Path:
    return project[0]


@pytest.fixture(scope="module")
def sources(project: tuple[Path, set[str]]) -> set[str]:
    return project[1]


@pytest.fixture(scope="module")
def built(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel that was built from it."""
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, tree)
    return out


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """The interpreter of an empty virtual environment."""
    run(sys.executable, "-m", "virtualenv", "--quiet", "--no-periodic-update", tmp_path / "venv")
    return tmp_path / "venv" / "bin" / "python"


def test_every_package_is_typed_and_documented() -> None:
    assert {"switchgear", "switchgear_memory", "switchgear_sqlite", "switchgear_redis"} <= set(packages())
    assert [name for name, path in packages().items() if not (path / "py.typed").is_file()] == []
    stray = [p.as_posix() for root in ROOTS for p in (ROOT / root).glob("*.py")]
    assert stray == [], "a plugin is a package with py.typed, never a single file"


def test_the_wheel_holds_the_packages_and_nothing_else(built: Path, sources: set[str]) -> None:
    (wheel,) = built.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    info = f"{'-'.join(wheel.name.split('-')[:2])}.dist-info/"
    assert {n for n in names if not n.startswith(info)} == sources
    assert {n.removeprefix(info) for n in names if n.startswith(info)} == {
        "METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE",
    }  # fmt: skip


def test_the_sdist_holds_the_sources_and_nothing_else(built: Path, sources: set[str]) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    inside = {n.partition("/")[2] for n in names if n.split("/")[0] in ROOTS}
    assert inside == sources
    others = {n for n in names if n.split("/")[0] not in ROOTS}
    assert others == {"LICENSE", "PKG-INFO", "README.md", "pyproject.toml", ".gitignore"}


def test_the_metadata_names_two_base_dependencies_and_every_extra(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    archive = zipfile.ZipFile(wheel)
    metadata = next(archive.read(n).decode() for n in archive.namelist() if n.endswith("METADATA"))
    required = [line.split(": ", 1)[1] for line in metadata.splitlines() if line.startswith("Requires-Dist")]
    assert {r.split(">")[0] for r in required if "extra ==" not in r} == BASE
    extras = {line.split(": ")[1] for line in metadata.splitlines() if line.startswith("Provides-Extra")}
    assert extras == {"cli", "redis", "kafka", "kafka-confluent", "sql", "conformance", "all"}


@pytest.mark.parametrize("how", ["wheel", "sdist", "editable"])
def test_an_installation_without_extras_works(how: str, tree: Path, built: Path, python: Path) -> None:
    source = {
        "wheel": lambda: next(built.glob("*.whl")),
        "sdist": lambda: next(built.glob("*.tar.gz")),
        "editable": lambda: tree,
    }
    run(python, "-m", "pip", "install", "--quiet", *(["--editable"] if how == "editable" else []), source[how]())
    found = json.loads(run(python, "-c", IMPORT_ALL, cwd=python.parent))
    assert set(found["distributions"]) == BASE | {"switchgear"}
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["switchgear.transports"]
    assert found["schemes"] == sorted(declared)
    assert found["kafka"] == "kafka"
    assert found["clients"] == []
    assert Path(found["where"]).is_relative_to(tree if how == "editable" else python.parent.parent)
    for name in packages():
        spec = run(python, "-c", f"import importlib.util as u; print(u.find_spec({name!r}).origin)", cwd=python.parent)
        assert (Path(spec.strip()).parent / "py.typed").is_file()
    for scheme in ("memory", "sqlite"):  # the transports that need no client
        run(
            python,
            "-c",
            f"from importlib.metadata import entry_points as e; e(group='switchgear.transports')[{scheme!r}].load()",
        )


def test_a_missing_extra_says_how_to_get_it(built: Path, python: Path) -> None:
    run(python, "-m", "pip", "install", "--quiet", next(built.glob("*.whl")))
    answer = run(python, "-c", OPEN_REDIS)
    assert "pip install 'switchgear[redis]'" in answer
    done = subprocess.run([python.parent / "switchgear", "transports"], capture_output=True, text=True)
    assert done.returncode != 0
    assert "pip install 'switchgear[cli]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_readme_and_ci_name_one_test_command() -> None:
    command = "python3 -m venv .venv && .venv/bin/pip install -q tox && .venv/bin/tox"
    for name in ("README.md", "CONTRIBUTING.md", ".ci/run"):
        assert command in (ROOT / name).read_text(), name
