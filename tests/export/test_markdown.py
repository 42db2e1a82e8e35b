"""The one table of the project."""

import pytest

from export.markdown import significant, table


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
