"""examples/app.py in a real browser: what a visitor types, presses and sees, on a desk and on a phone."""

import io
import json
import urllib.request
import zipfile

import numpy as np
import pytest
from PIL import Image
from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from waiting import click, until

from s2clip import Segmenter, scenes
from s2clip.results.visualize import overlay

WORDS = "sky, house; hut, tree, grass; meadow, rock; mountain"


def source(browser, part: str) -> str | None:
    """Address of the picture shown in a part of the page, if there is one."""
    try:
        return browser.find_element(By.CSS_SELECTOR, f"#{part} img").get_attribute("src")
    except (NoSuchElementException, StaleElementReferenceException):
        return None


def legend(browser) -> str:
    return until(lambda: browser.find_element(By.CSS_SELECTOR, "#overlay .s2clip-legend").text)


def fetched(address: str) -> bytes:
    with urllib.request.urlopen(address) as reply:
        return reply.read()


def picture(address: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(fetched(address))).convert("RGB"))


def pick_example(browser) -> None:
    click(lambda: browser.find_element(By.CSS_SELECTOR, ".gallery-item"))
    until(lambda: browser.find_elements(By.CSS_SELECTOR, ".image-frame img, [data-testid='image'] img"))


def type_into(browser, label: str, words: str) -> None:
    path = f"//label[.//span[contains(., '{label}')]]//*[self::textarea or self::input]"
    write(lambda: browser.find_element(By.XPATH, path), words)


def write(find, words: str) -> None:
    """Replace what stands in a box."""
    until(lambda: find().send_keys(Keys.CONTROL, "a") is None)
    until(lambda: find().send_keys(words or Keys.DELETE) is None)


def press(browser, name: str = "Segment") -> None:
    click(lambda: browser.find_element(By.XPATH, f"//button[contains(., '{name}')]"))


def errors(browser) -> list[str]:
    return [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


@pytest.fixture(scope="module")
def expected():
    segmenter = Segmenter.from_pretrained("tiny").set_classes(WORDS)
    return segmenter(scenes.generate(24)[0])


def test_a_visitor_picks_a_picture_types_names_and_sees_the_overlay_change(browser, expected):
    until(lambda: "no photographs" in browser.find_element(By.TAG_NAME, "body").text)
    pick_example(browser)
    type_into(browser, "Classes", WORDS)
    press(browser)
    first = until(lambda: source(browser, "overlay"))
    shown = np.asarray(overlay(expected.image, expected.segmentation, expected.classes, legend=False))
    assert np.array_equal(picture(first), shown)
    assert "house" in legend(browser)
    until(lambda: "ms" in browser.find_element(By.ID, "time").text)
    names = browser.execute_script(
        "return [...document.querySelectorAll('#overlay title')].map(one => one.textContent)"
    )
    assert set(names) == {expected.classes[index].split(";")[0] for index in expected.segmentation.unique().tolist()}

    links = until(lambda: browser.find_elements(By.CSS_SELECTOR, "#files a"))
    files = {link.get_attribute("download"): link.get_attribute("href") for link in links}
    (label_map,) = (address for name, address in files.items() if name.endswith(".png"))
    with Image.open(io.BytesIO(fetched(label_map))) as image:
        assert np.array_equal(np.array(image), expected.segmentation.numpy())
    (packed,) = (address for name, address in files.items() if name.endswith(".zip"))
    with zipfile.ZipFile(io.BytesIO(fetched(packed))) as archive:
        classes = json.loads(archive.read("classes.json"))["classes"]
    assert [one["name"] for one in classes] == list(expected.classes)

    type_into(browser, "Classes", "sky, snow")
    press(browser)
    second = until(lambda: source(browser, "overlay") not in (None, first) and source(browser, "overlay"))
    assert not np.array_equal(picture(second), shown)
    until(lambda: "snow" in legend(browser))
    assert "house" not in legend(browser)
    assert errors(browser) == []


@pytest.mark.parametrize(
    ("pick", "words", "message"),
    [(True, "", "classes"), (False, WORDS, "Pick or upload a picture")],
    ids=["no classes", "no picture"],
)
def test_what_is_missing_is_said_on_the_page_and_not_on_the_server(browser, page_log, pick, words, message):
    until(lambda: browser.find_elements(By.XPATH, "//button[contains(., 'Segment')]"))
    if pick:
        pick_example(browser)
    type_into(browser, "Classes", words)
    press(browser)
    until(lambda: said(browser, message))
    assert source(browser, "overlay") is None
    assert errors(browser) == []
    assert "Traceback" not in page_log.read_text()


def test_a_picture_of_70_megapixels_is_refused_in_one_line_and_lets_the_next_visitor_go_on(browser, page_log, tmp_path):
    Image.effect_noise((1000, 700), 60).resize((10_000, 7_000), Image.Resampling.NEAREST).save(tmp_path / "large.jpg")
    until(
        lambda: (
            browser.find_element(By.CSS_SELECTOR, "input[type='file']").send_keys(str(tmp_path / "large.jpg")) is None
        )
    )
    first, address = browser.current_window_handle, browser.current_url
    browser.switch_to.new_window("tab")
    browser.get(address)
    pick_example(browser)
    press(browser)
    until(lambda: source(browser, "overlay"))
    browser.switch_to.window(first)
    until(lambda: browser.find_elements(By.CSS_SELECTOR, ".image-frame img, [data-testid='image'] img"))
    press(browser)
    words = "large.jpg: 10000x7000 is 70.0 megapixels, over the limit of 24"
    until(lambda: said(browser, words))
    assert "Traceback" not in page_log.read_text()


def test_opacity_and_threshold_change_what_is_shown(browser, expected):
    pick_example(browser)
    type_into(browser, "Classes", WORDS)
    press(browser)
    first = until(lambda: source(browser, "overlay"))

    def changed(before):
        return until(lambda: source(browser, "overlay") not in (None, before) and source(browser, "overlay"))

    def field(label, kind):
        path = f"//input[@type='{kind}'][ancestor::*[contains(@class, 'block')][1][.//*[text()='{label}']]]"
        return lambda: browser.find_element(By.XPATH, path)

    until(lambda: field("Opacity", "range")().send_keys(Keys.HOME) is None)
    plain = changed(first)
    untinted = overlay(expected.image, expected.segmentation, expected.classes, legend=False, opacity=0)
    assert np.array_equal(picture(plain), np.asarray(untinted))

    press(browser, "Method, threshold")
    write(field("Threshold of the score", "number"), "0.9" + Keys.TAB)
    press(browser)
    legend = until(lambda: "no class" in (text := of_legend(browser)) and text)
    share = float((expected.confidence < 0.9).float().mean())
    assert f"no class {100 * share:.1f} %" in legend
    type_into(browser, "Pixels under it become", "rock")
    press(browser)
    rock = ((expected.confidence < 0.9) | (expected.segmentation == 4)).float().mean()
    until(lambda: f"rock {100 * float(rock):.1f} %" in of_legend(browser))
    type_into(browser, "Pixels under it become", "rok")
    press(browser)
    until(lambda: said(browser, "background: expected one of sky, house; hut"))


def of_legend(browser) -> str:
    return browser.find_element(By.CSS_SELECTOR, "#overlay .s2clip-legend").text


def said(browser, words: str) -> bool:
    return any(words in toast.text for toast in browser.find_elements(By.CSS_SELECTOR, ".toast-body"))


def test_on_a_phone_nothing_is_cut_off_and_the_result_comes_into_sight(browser):
    metrics = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    pick_example(browser)
    press(browser)
    until(lambda: source(browser, "overlay"))
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
    box = "document.querySelector('#overlay img').getBoundingClientRect()"
    until(lambda: browser.execute_script(f"const box = {box}; return box.top < innerHeight && box.bottom > 0"))


def test_every_method_answers_on_the_page_that_has_regions_of_its_own(browser):
    pick_example(browser)
    press(browser, "Method, threshold")

    def box():
        return browser.find_element(By.CSS_SELECTOR, "input[aria-label='Method']")

    click(box)
    write(box, "corrclip")
    until(lambda: box().send_keys(Keys.ENTER) is None)
    press(browser)
    until(lambda: source(browser, "overlay"))
    assert errors(browser) == []
