"""The service's page, in Chromium, where there is one: what happens to files that are dropped.

The answers are a stub's; that they are `localize`'s is tested in `test_service`.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import AXE, wait_until
from test_service import PNG, StubModel, encoded, listening

from defectcam.service import ServiceSettings, create_app

SMALL = encoded(size=(30, 50))
LARGE = encoded(size=(150, 150))  # more pixels than are sent back
DROP = """([selector, files]) => {
    const carried = new DataTransfer();
    for (const [name, text] of files) {
        const bytes = Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
        carried.items.add(new File([bytes], name));
    }
    const place = document.querySelector(selector);
    return ["dragenter", "dragover", "drop"].map(type => {
        const event = new DragEvent(type, {
            bubbles: true, cancelable: true, dataTransfer: carried,
        });
        place.dispatchEvent(event);
        return event.defaultPrevented;
    }).slice(1);
}"""


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Return the address of a service with two stubs, which asks for a token."""
    folder = tmp_path_factory.mktemp("served")
    paths = {name: folder / f"{name}.stub" for name in ("sure", "unsure")}
    for path in paths.values():
        path.touch()
    settings = ServiceSettings(
        reload_interval=0, max_pixels=100_000, max_included_pixels=20_000, token="secret"
    )
    answers = {paths["sure"]: 0.75, paths["unsure"]: 0.55}
    app = create_app(paths, settings, load=lambda path: StubModel(answers[Path(path)]))
    with listening(app) as (host, port, _):
        yield f"http://{host}:{port}/"


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    """Return the opened page, with the token filled in; its script must not fail."""
    context = browser.new_context()
    page = context.new_page()
    failures: list[str] = []
    page.on("pageerror", lambda error: failures.append(str(error)))
    page.goto(address)
    wait_until(page, "document.getElementById('model').value === 'sure'")
    page.fill("#token", "secret")
    yield page
    context.close()
    assert failures == []


def drop(page: Any, *images: bytes, on: str = "#drop") -> list[bool]:
    files = [[f"{i}.png", base64.b64encode(image).decode()] for i, image in enumerate(images)]
    return page.evaluate(DROP, [on, files])


def status(page: Any) -> str:
    wait_until(page, "!['', 'Looking …'].includes(document.getElementById('status').textContent)")
    return page.locator("#status").inner_text()


def test_a_dropped_image_is_shown_with_its_boxes(page: Any) -> None:
    drop(page, PNG)
    assert status(page) == "scratch: probability of a defect 75.0 %."
    assert page.locator("#overlay").is_visible()
    assert page.locator("#boxes tbody tr").count() == 1


def test_a_drop_beside_the_field_does_not_leave_the_page(page: Any) -> None:
    assert drop(page, PNG, on="h1") == [True, True]
    assert status(page).startswith("scratch")
    text = """() => {
        const carried = new DataTransfer();
        carried.setData("text/plain", "secret");
        const event = new DragEvent("drop", {
            bubbles: true, cancelable: true, dataTransfer: carried,
        });
        document.getElementById("token").dispatchEvent(event);
        return event.defaultPrevented;
    }"""
    assert page.evaluate(text) is False  # the browser puts it into the field


def test_of_several_files_the_page_says_that_it_looks_at_one(page: Any) -> None:
    drop(page, SMALL, PNG)
    assert status(page).endswith("Only the first of 2 files is looked at.")
    wait_until(page, "document.getElementById('overlay').complete")
    assert page.evaluate("document.getElementById('overlay').naturalWidth") == 50


def test_an_image_too_large_to_be_sent_back_is_looked_at(page: Any) -> None:
    drop(page, LARGE)
    assert status(page) == (
        "scratch: probability of a defect 75.0 %. The image is too large to be shown here."
    )
    assert page.locator("#overlay").is_hidden()
    assert page.locator("#boxes tbody tr").count() == 1
    drop(page, encoded(size=(400, 400)))
    wait_until(page, "document.getElementById('status').className === 'problem'")
    assert "at most 100000 pixels are taken" in status(page)


def test_another_model_looks_at_the_same_image(page: Any) -> None:
    drop(page, PNG)
    assert "75.0 %" in status(page)
    page.select_option("#model", "unsure")
    assert "55.0 %" in status(page)


@pytest.mark.parametrize("token", ["", "wrong", "日本"])
def test_a_wrong_token_is_named_in_the_pages_words(page: Any, token: str) -> None:
    page.fill("#token", token)
    drop(page, PNG)
    assert "fill it in above" in status(page)


def test_what_is_no_image_and_answers_that_are_no_json_are_told(page: Any) -> None:
    drop(page, b"no image")
    assert "not an image of a known format" in status(page)
    page.route("**/localize*", lambda route: route.fulfill(status=502, body="<html>Bad Gateway"))
    page.locator("#status").evaluate("place => { place.textContent = ''; }")
    drop(page, PNG)
    assert status(page) == "No answer: status 502."


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_violation(browser: Any, address: str, scheme: str) -> None:
    if not AXE.is_file():
        pytest.skip("axe-core is not here: `npm install axe-core`, or set AXE to its axe.min.js")
    page = browser.new_context(color_scheme=scheme, bypass_csp=True).new_page()
    page.goto(address)
    page.add_script_tag(path=AXE)
    for token in ("wrong", "secret"):
        page.fill("#token", token)
        page.locator("#status").evaluate("place => { place.textContent = ''; }")
        drop(page, PNG)
        status(page)
        found = page.evaluate("axe.run()")["violations"]
        assert [(one["id"], [node["html"] for node in one["nodes"]]) for one in found] == []
    page.context.close()
