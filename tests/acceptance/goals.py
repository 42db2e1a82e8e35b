"""Goals of the acceptance tests: measured figures and their limits, printed as one table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from export.markdown import cell, table


@dataclass(frozen=True)
class Goal:
    """A measured figure and its limit: a maximum, or a minimum with ``at_least``. A fact has to be True."""

    name: str
    measured: float | bool
    limit: float | bool = True
    at_least: bool = False

    @property
    def is_met(self) -> bool:
        """Whether the figure keeps the limit."""
        if self.limit is True or self.at_least:
            return self.measured >= self.limit
        return self.measured <= self.limit

    def row(self) -> list[str]:
        """Return the cells of the table: goal, limit, measured, passed."""
        sign = "" if self.limit is True else "≥ " if self.at_least else "≤ "
        return [self.name, f"{sign}{cell(self.limit)}", cell(self.measured), cell(self.is_met)]


def report_goals(goals: Sequence[Goal]) -> bool:
    """Print the table; return whether all goals are met."""
    print(table(["goal", "limit", "measured", "passed"], [goal.row() for goal in goals]))
    return all(goal.is_met for goal in goals)
