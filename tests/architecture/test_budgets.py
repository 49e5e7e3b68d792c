"""Files and functions stay short enough to be read in one go, and open with what they answer."""

import ast
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src" / "nearstep"
FILES = sorted(SOURCE.rglob("*.py"))
FILE_LINES, FUNCTION_LINES, LOOP_LINES = 300, 60, 60


def functions(file: Path) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    nodes = ast.walk(ast.parse(file.read_text()))
    return [node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def test_files_and_functions_stay_short():
    long_files = {file.name: n for file in FILES if (n := len(file.read_text().splitlines())) > FILE_LINES}
    long_functions = {
        f"{file.name} {function.name}": function.end_lineno - function.lineno + 1
        for file in FILES
        for function in functions(file)
        if function.end_lineno - function.lineno >= FUNCTION_LINES
    }
    assert (long_files, long_functions) == ({}, {})


def test_a_file_opens_with_a_line_that_says_what_it_answers():
    assert [str(file) for file in FILES if not ast.get_docstring(ast.parse(file.read_text()))] == []


def test_no_probing_and_no_swallowed_error():
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ExceptHandler):
                assert node.type is not None, f"{file}, line {node.lineno}: bare except"
                if ast.unparse(node.type) in ("Exception", "BaseException"):
                    goes_on = not any(isinstance(inner, ast.Raise) for inner in ast.walk(node))
                    assert not goes_on, f"{file}, line {node.lineno}: goes on"
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id != "hasattr", f"{file}, line {node.lineno}: hasattr"


def test_the_loop_can_be_read_at_a_glance():
    (train,) = (function for function in functions(SOURCE / "training" / "loop.py") if function.name == "train")
    assert train.end_lineno - train.lineno < LOOP_LINES
