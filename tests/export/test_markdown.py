"""The one table of the project, and the marked places of a page."""

import pytest

from export.markdown import filled, significant, table


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.0012345, "0.00123"), (0.9996, "1.00"), (9.996, "10.0"), (-12.345, "-12.3"), (1234.5, "1,230"), (0.0, "0")],
)
def test_significant_keeps_three_digits(value, shown):
    assert significant(value) == shown


def test_a_table_formats_values_and_aligns_figures_to_the_right():
    lines = table(("a", "b", "c"), [("x", 1.0, None), ("y", 12345, "+2.5"), ("z", "–", 3)]).splitlines()
    assert [cell.strip() for cell in lines[3].split("|")[1:-1]] == ["y", "12,345", "+2.5"]
    assert [cell.strip() for cell in lines[2].split("|")[1:-1]] == ["x", "1.00", "–"]
    assert [(cell.startswith(":"), cell.endswith(":")) for cell in lines[1].split("|")[1:-1]] == [
        (True, False),
        (False, True),
        (False, True),
    ]
    assert table(("a",), []) == ""


def test_a_page_gets_its_tables_and_keeps_its_text():
    page = "before\n<!-- table: a -->old<!-- end: a -->\nafter\n"
    once = filled(page, {"a": lambda: table(("a", "b"), [("x", 1), ("longer", 2)])})
    assert once.startswith("before\n<!-- table: a -->\n| a | b |\n")
    assert once.endswith("| longer | 2 |\n<!-- end: a -->\nafter\n")
    assert filled(once, {"a": lambda: table(("a", "b"), [("x", 1), ("longer", 2)])}) == once


@pytest.mark.parametrize("page", ["", "<!-- table: a -->", "<!-- end: a --><!-- table: a -->"])
def test_a_page_without_both_markers_is_not_filled(page):
    with pytest.raises(ValueError, match="found 0"):
        filled(page, {"a": lambda: "| 1 |"})
