"""Every case of the catalogue comes out as it says, and the page of the docs says the same."""

from __future__ import annotations

import sys
from collections import Counter

import pytest

from faults.catalogue import GROUPS, PAGE, Bench, Case, all_cases, page


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in all_cases()])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_case(case: Case, bench: Bench, record_property) -> None:
    record_property("fault_group", case.group)
    case.check(bench)


def test_there_are_enough_cases_and_each_has_its_name() -> None:
    names = Counter(case.name for case in all_cases())
    assert len(names) >= 150
    assert [name for name, count in names.items() if count > 1] == []
    assert {case.group for case in all_cases()} == set(GROUPS.values())


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere some cases do not exist")
def test_the_page_of_the_docs_is_this_catalogue() -> None:
    assert PAGE.read_text("utf-8") == page(), "call python -m faults.catalogue in the folder tests"
