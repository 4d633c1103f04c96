"""Rooms may import only the rooms listed for them. The table is the architecture."""

import ast
from pathlib import Path

SRC = Path(__file__).parents[1] / "src" / "lightwell"
MAY_IMPORT = {
    "errors": "",
    "files": "",
    "show": "",
    "config": "",
    "runtime": "config",
    "tokenizer": "files",
    "model": "config",
    "data": "config files show runtime tokenizer",
    "store": "config files runtime tokenizer model",
    "interop": "config files tokenizer model store",
    "generation": "runtime tokenizer model",
    "evaluation": "config show runtime tokenizer model data generation",
    "training": "config files runtime model data store evaluation",
    "planner": "config show runtime tokenizer model data training",
    "finetune": "config runtime tokenizer model data store evaluation training",
    "glass": "files show runtime",
    "selftest": "config runtime tokenizer model data store training generation",
}
BELOW = " ".join(MAY_IMPORT)
LIBRARY = f"{BELOW} trained beginning api inspection inside"
MAY_IMPORT |= {
    "trained": BELOW,
    "beginning": f"{BELOW} trained",
    "api": f"{BELOW} trained beginning",
    "inspection": f"{BELOW} trained beginning api",
    "inside": f"{BELOW} trained beginning api",
    "lessons": LIBRARY,
    "studio": LIBRARY,
    "cli": LIBRARY,
    "__main__": "cli",
}


def room_of(path: Path) -> str:
    parts = path.relative_to(SRC).parts
    return parts[0] if len(parts) > 1 else path.stem


def imported_rooms(path: Path):
    """Yield (line, room) for every import of one of our rooms, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: write a full import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "lightwell" and len(parts) > 1 and parts[1] in MAY_IMPORT:
                yield node.lineno, parts[1]


def test_rooms_import_downwards_only():
    files = [path for path in SRC.rglob("*.py") if path != SRC / "__init__.py"]
    seen = 0
    wrong = []
    for path in files:
        room = room_of(path)
        assert room in MAY_IMPORT, f"{path}: a room that the table does not know"
        for line, target in imported_rooms(path):
            seen += 1
            if target not in (room, "errors", *MAY_IMPORT[room].split()):
                wrong.append(f"{path.relative_to(SRC)}:{line}: {room} may not import {target}")
    assert seen > 100, "found next to no imports: this guard guards nothing"
    assert not wrong, "\n".join(wrong)


def test_only_the_command_line_writes_to_the_screen():
    rooms = [path for path in SRC.rglob("*.py") if room_of(path) not in ("cli",)]
    assert rooms
    printing = [
        f"{path.relative_to(SRC)}:{node.lineno}"
        for path in rooms
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert not printing, printing


def test_front_doors_stay_readable():
    doors = ["config/gpt", "tokenizer/bpe", "data/batches", "model/gpt2", "model/reference"]
    doors += ["training/step", "training/loop", "generation/sample", "store/checkpoint", "glass/rules"]
    lengths = {door: len((SRC / f"{door}.py").read_text(encoding="utf-8").splitlines()) for door in doors}
    assert len(lengths) == 10
    assert sum(lengths.values()) < 2500, lengths


def test_the_loop_fits_on_a_screen():
    tree = ast.parse((SRC / "training" / "loop.py").read_text(encoding="utf-8"))
    run = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "run")
    assert run.end_lineno - run.lineno + 1 <= 60
