from __future__ import annotations

import warnings
from types import ModuleType

import pytest

from defectcam import exceptions
from defectcam.exceptions import FewDefectsWarning, warn_caller

CATEGORIES = [name for name in exceptions.__all__ if name.endswith("Warning")]


def module(name: str, code: str) -> ModuleType:
    made = ModuleType(name)
    exec(compile(code, f"{name}.py", "exec"), vars(made))
    return made


@pytest.mark.parametrize("name", CATEGORIES)
def test_each_category_can_be_filtered_alone_or_as_a_user_warning(name):
    category = getattr(exceptions, name)
    assert issubclass(category, UserWarning)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.simplefilter("ignore", category)
        for other in CATEGORIES:
            warn_caller("words", getattr(exceptions, other))
    assert [one.category.__name__ for one in caught] == [o for o in CATEGORIES if o != name]


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_a_warning_points_at_the_line_that_called_into_the_package(depth):
    library = module(
        "defectcam.library",
        "def fit(depth, warn, category):\n"
        "    fit(depth - 1, warn, category) if depth else warn('words', category)\n",
    )
    decorator = module("sklearn.base", "def call(fit, *args):\n    fit(*args)")
    user = module("user", "def run(call, *args):\n    call(*args)")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        user.run(decorator.call, library.fit, depth, warn_caller, FewDefectsWarning)
    assert (caught[0].filename, caught[0].lineno) == ("user.py", 2)


def test_it_works_at_the_top_of_the_stack():
    with pytest.warns(FewDefectsWarning, match="words") as caught:
        warn_caller("words", FewDefectsWarning)
    assert caught[0].filename == __file__
