"""What the wheel holds, and that everything imported is declared."""

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = {
    "dspark": ROOT / "dspark",
    "dspark_cli": ROOT / "dspark_cli",
    "dspark_tui": ROOT / "tui" / "dspark_tui",
    "dspark_kernels": ROOT / "kernels" / "dspark_kernels",
}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


@pytest.fixture(scope="module")
def wheel_names(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=120,
    )
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def test_the_wheel_holds_exactly_the_four_packages(wheel_names):
    tops = {name.partition("/")[0] for name in wheel_names}
    assert {top for top in tops if not top.endswith(".dist-info")} == set(PACKAGES)


def test_every_file_of_the_packages_that_is_not_code_is_in_the_wheel(wheel_names):
    files = [
        f"{package}/{path.relative_to(folder).as_posix()}"
        for package, folder in PACKAGES.items()
        for path in folder.rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc") and not path.name.startswith(".")
    ]
    assert "dspark/assets/prompts/bench.jsonl" in files
    assert any(name.endswith(".tcss") for name in files)
    assert set(files) <= set(wheel_names)


def test_no_package_is_called_kernels_or_tui():
    """Hugging Face has a package of the first name; ours at the root would stand before it."""
    assert not (ROOT / "kernels" / "__init__.py").exists()
    assert not (ROOT / "tui" / "__init__.py").exists()


def test_every_folder_with_code_is_a_package():
    for folder in PACKAGES.values():
        for path in folder.rglob("*.py"):
            assert (path.parent / "__init__.py").exists(), path


def test_every_import_is_declared():
    declared = {_normal(re.split(r"[^\w.-]", each)[0]) for each in PROJECT["dependencies"]}
    providers = packages_distributions()
    missing = {
        module: str(path.relative_to(ROOT))
        for folder in PACKAGES.values()
        for path in folder.rglob("*.py")
        for module in _imported(path)
        if module not in sys.stdlib_module_names and module not in PACKAGES
        if not declared & {_normal(name) for name in providers.get(module, [module])}
    }
    assert missing == {}


def _imported(path: Path) -> set[str]:
    """Modules that a file cannot do without: not those whose absence it meets."""
    names: set[str] = set()
    for node in _without_optional_imports(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    return names


def _without_optional_imports(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.Try) and any("ImportError" in _caught(each) for each in node.handlers):
        return
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        return
    yield node
    for child in ast.iter_child_nodes(node):
        yield from _without_optional_imports(child)


def _caught(handler: ast.ExceptHandler) -> str:
    return ast.unparse(handler.type) if handler.type else ""


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_extra_and_the_group_for_development_are_the_same():
    content = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    assert PROJECT["optional-dependencies"]["dev"] == content["dependency-groups"]["dev"]
