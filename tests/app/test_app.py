"""examples/app.py in a real browser: what a visitor types, presses and sees."""

import io
import urllib.request

import numpy as np
import pytest
from PIL import Image
from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from waiting import until

from s2clip import Segmenter, scenes
from s2clip.results.visualize import overlay

WORDS = "sky, house; hut, tree, grass; meadow, rock; mountain"


def source(browser, part: str) -> str | None:
    """Address of the picture shown in a part of the page, if there is one."""
    try:
        return browser.find_element(By.CSS_SELECTOR, f"#{part} img").get_attribute("src")
    except (NoSuchElementException, StaleElementReferenceException):
        return None


def picture(address: str) -> np.ndarray:
    with urllib.request.urlopen(address) as reply:
        return np.asarray(Image.open(io.BytesIO(reply.read())).convert("RGB"))


def pick_example(browser) -> None:
    thumbnails = until(lambda: browser.find_elements(By.CSS_SELECTOR, "button.gallery-item, .gallery-item"))
    thumbnails[0].click()
    until(lambda: browser.find_elements(By.CSS_SELECTOR, ".image-frame img, [data-testid='image'] img"))


def type_classes(browser, words: str) -> None:
    box = until(lambda: browser.find_element(By.CSS_SELECTOR, "textarea, label input[type='text']"))
    box.send_keys(Keys.CONTROL, "a")
    box.send_keys(words or Keys.DELETE)


def press(browser) -> None:
    browser.find_element(By.XPATH, "//button[normalize-space()='Segment']").click()


def errors(browser) -> list[str]:
    return [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


@pytest.fixture(scope="module")
def expected():
    segmenter = Segmenter.from_pretrained("tiny").set_classes(WORDS)
    return segmenter(scenes.generate(24)[0])


def test_a_visitor_picks_a_picture_types_names_and_sees_the_overlay_change(browser, expected):
    pick_example(browser)
    type_classes(browser, WORDS)
    press(browser)
    first = until(lambda: source(browser, "overlay"))
    shown = np.asarray(overlay(expected.image, expected.segmentation, expected.classes))
    assert np.array_equal(picture(first), shown)
    assert "house" in browser.find_element(By.ID, "shares").text
    assert "ms" in browser.find_element(By.ID, "time").text

    type_classes(browser, "sky, snow")
    press(browser)
    second = until(lambda: source(browser, "overlay") not in (None, first) and source(browser, "overlay"))
    assert not np.array_equal(picture(second), shown)
    until(lambda: "snow" in browser.find_element(By.ID, "shares").text)
    assert "house" not in browser.find_element(By.ID, "shares").text
    assert errors(browser) == []


@pytest.mark.parametrize(
    ("pick", "words", "message"),
    [(True, "", "classes"), (False, WORDS, "Pick or upload a picture")],
    ids=["no classes", "no picture"],
)
def test_what_is_missing_is_said_on_the_page(browser, pick, words, message):
    until(lambda: browser.find_elements(By.XPATH, "//button[normalize-space()='Segment']"))
    if pick:
        pick_example(browser)
    type_classes(browser, words)
    press(browser)
    until(lambda: any(message in toast.text for toast in browser.find_elements(By.CSS_SELECTOR, ".toast-body")))
    assert source(browser, "overlay") is None
    assert errors(browser) == []
