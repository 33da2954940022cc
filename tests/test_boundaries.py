"""Who may import whom, checked on the source so that it costs no imports and sees lazy ones."""

import ast
from pathlib import Path

import pytest
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

ROOT = Path(__file__).parents[1]
PACKAGES = ("parcae_core", "sweeps", "analysis")
FORBIDDEN = {
    "parcae_core": {"ray", "wandb", "pandas", "matplotlib", "typer", "sweeps", "analysis"},
    "analysis": {"torch", "triton", "ray", "wandb", "parcae_core", "sweeps"},
}
# The room of sweeps/, with the rooms in it, that alone imports a library, so that one that is absent, slow or changed
# concerns its files only
ONLY_IN = {
    "typer": "sweeps/cli",
    "ray": "sweeps/runner",
    "wandb": "sweeps/tracking",
    "lm_eval": "sweeps/scoring",
}
MOST_MODULES = 15  # of a room: a folder, without the rooms in it


def modules(root: Path, package: str) -> dict[str, Path]:
    """Dotted name -> file, of every module of a package."""
    return {
        ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path
        for path in sorted((root / package).rglob("*.py"))
    }


def imports(path: Path) -> set[str]:
    """Dotted names that a file imports, inside functions and for annotations too; `from a import b`
    gives a and a.b."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found |= {node.module, *(f"{node.module}.{a.name}" for a in node.names)}
    return found


def libraries(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(path)}


def violations(root: Path) -> list[str]:
    return [
        f"{path.relative_to(root)} imports {', '.join(sorted(bad))}"
        for package, banned in FORBIDDEN.items()
        for path in modules(root, package).values()
        if (bad := libraries(path) & banned)
    ]


def circles(root: Path, package: str) -> list[set[str]]:
    """Groups of modules of which each imports every other, by whatever detours."""
    files = modules(root, package)
    names = list(files)
    imported = [imports(path) for path in files.values()]
    edges = [[name in found for name in names] for found in imported]
    n, group = connected_components(csr_array(edges), connection="strong")
    found = [{name for name, g in zip(names, group, strict=True) if g == i} for i in range(n)]
    return sorted((c for c in found if len(c) > 1), key=sorted)


def test_rooms_import_in_one_direction():
    assert violations(ROOT) == []


@pytest.mark.parametrize(("library", "room"), ONLY_IN.items())
def test_a_library_of_one_room_is_imported_there_only(library, room):
    importers = {
        path.parent.relative_to(ROOT).as_posix()
        for path in modules(ROOT, "sweeps").values()
        if library in libraries(path)
    }
    assert room in importers
    assert [i for i in importers if not f"{i}/".startswith(f"{room}/")] == []


@pytest.mark.parametrize("package", PACKAGES)
def test_no_room_has_more_modules_than_a_reader_takes_in(package):
    sizes: dict[str, int] = {}
    for path in modules(ROOT, package).values():
        if path.name != "__init__.py":
            room = path.parent.relative_to(ROOT).as_posix()
            sizes[room] = sizes.get(room, 0) + 1
    assert {room: n for room, n in sizes.items() if n > MOST_MODULES} == {}


@pytest.mark.parametrize("package", PACKAGES)
def test_no_modules_import_each_other_in_a_circle(package):
    assert circles(ROOT, package) == []


def test_the_checks_see_imports_inside_functions(tmp_path):
    (tmp_path / "analysis").mkdir()
    (tmp_path / "analysis" / "fit.py").write_text(
        "def f():\n    import torch\n    import analysis.x\n"
    )
    assert violations(tmp_path) == ["analysis/fit.py imports torch"]
    (tmp_path / "analysis" / "x.py").write_text("from analysis import fit\n")
    assert circles(tmp_path, "analysis") == [{"analysis.fit", "analysis.x"}]


def test_package_init_files_hold_a_docstring_only():
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("__init__.py")):
            if (
                path == ROOT / "analysis" / "__init__.py"
            ):  # lazy public names, and no import of ours
                assert libraries(path) <= {"importlib"}
                continue
            body = ast.parse(path.read_text()).body
            assert all(
                isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant) for n in body
            ), path
