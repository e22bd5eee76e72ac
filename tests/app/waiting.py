"""Pages change when they like: ask until they have."""

from selenium.common.exceptions import (
    ElementClickInterceptedException,
    ElementNotInteractableException,
    NoSuchElementException,
    StaleElementReferenceException,
)
from selenium.webdriver.support.wait import WebDriverWait

# What a page says of a part that is not drawn yet, is drawn anew, or still moves.
NOT_YET = (
    ElementClickInterceptedException,
    ElementNotInteractableException,
    NoSuchElementException,
    StaleElementReferenceException,
)


def until(condition, *, seconds: float = 60):
    """What `condition` returns once it is true; TimeoutException after so many seconds."""
    return WebDriverWait(None, seconds, 0.2, NOT_YET).until(lambda _: condition(), f"not within {seconds} s")


def click(find) -> None:
    """Press what `find` finds, once it is there and can be pressed."""
    until(lambda: find().click() is None)
