"""The measure of one Python source file."""

import sysconfig
from pathlib import Path

import pytest

from manycore._cli.analysis import analyse_source, source_files, timed_analysis


def complexity_of(body: str) -> int:
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    report = analyse_source(f"def f(a, b, c):\n{lines}\n".encode())
    return report.most_complex[0].complexity


@pytest.mark.parametrize(
    ("body", "paths"),
    [
        ("return a", 1),
        ("if a:\n    return b\nreturn c", 2),
        ("if a:\n    pass\nelif b:\n    pass\nelse:\n    pass", 3),
        ("return a if b else c", 2),
        ("return a and b and c", 3),
        ("for x in a:\n    while b:\n        pass", 3),
        ("try:\n    a()\nexcept KeyError:\n    pass\nexcept ValueError:\n    pass", 3),
        ("assert a", 2),
        ("return [x for x in a if x if b]", 4),
        ("match a:\n    case 1:\n        pass\n    case 2:\n        pass\n    case _:\n        pass", 3),
        ("def inner():\n    if a:\n        pass\nreturn inner", 2),
    ],
)
def test_complexity_is_one_more_than_the_decisions(body: str, paths: int) -> None:
    assert complexity_of(body) == paths


def test_functions_have_dotted_names_and_lengths() -> None:
    source = b"class C:\n    def m(self):\n        def inner():\n            return 1\n        return inner\n\n"
    source += b"async def g(): pass"
    report = analyse_source(source, "x.py")
    assert report.lines == 7
    assert report.functions == 3
    assert {function.name: function.lines for function in report.most_complex} == {"C.m.inner": 2, "C.m": 4, "g": 1}
    assert report.longest is not None
    assert report.longest.name == "C.m"
    assert report.bytecode_bytes > 0


def test_a_file_that_does_not_parse_says_so(tmp_path: Path) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("def f(:\n")
    report, _ = timed_analysis(str(broken))
    assert report.error.startswith("SyntaxError")
    report, _ = timed_analysis(str(tmp_path / "missing.py"))
    assert report.error.startswith("FileNotFoundError")


def test_the_library_is_listed_largest_first_without_tests() -> None:
    files = source_files(Path(sysconfig.get_path("stdlib")))
    sizes = [size for _, size in files]
    assert len(files) > 300
    assert sizes == sorted(sizes, reverse=True)
    assert not any("/test/" in path or "/site-packages/" in path for path, _ in files)
