"""Who may import whom, checked on the source so that it costs no imports and sees lazy ones."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
FORBIDDEN = {
    "parcae_core": {"ray", "wandb", "pandas", "matplotlib", "sweeps", "analysis"},
    "analysis": {"torch", "triton", "ray", "wandb", "parcae_core", "sweeps"},
}


def imported(tree: ast.AST) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {a.name.split(".")[0] for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module.split(".")[0])
    return names


def violations(root: Path) -> list[str]:
    return [
        f"{path.relative_to(root)} imports {', '.join(sorted(bad))}"
        for package, banned in FORBIDDEN.items()
        for path in sorted((root / package).rglob("*.py"))
        if (bad := imported(ast.parse(path.read_text())) & banned)
    ]


def test_rooms_import_in_one_direction():
    assert violations(ROOT) == []


def test_only_the_tracking_room_imports_wandb():
    # so that a W&B that is absent, slow or changed concerns these files alone
    importers = {
        path.parent.relative_to(ROOT).as_posix()
        for path in sorted((ROOT / "sweeps").rglob("*.py"))
        if "wandb" in imported(ast.parse(path.read_text()))
    }
    assert importers == {"sweeps/tracking"}


def test_the_check_sees_imports_inside_functions(tmp_path):
    (tmp_path / "analysis").mkdir()
    (tmp_path / "analysis" / "fit.py").write_text("def f():\n    import torch\n")
    assert violations(tmp_path) == ["analysis/fit.py imports torch"]


def test_package_init_files_hold_a_docstring_only():
    for package in ("parcae_core", "sweeps", "analysis"):
        for path in sorted((ROOT / package).rglob("__init__.py")):
            body = ast.parse(path.read_text()).body
            assert all(
                isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant) for n in body
            ), path
