"""A served page and a headless Chromium (the system's packages chromium and chromium-driver)."""

import http.client
import os
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from selenium import webdriver
from waiting import until

APP = Path(__file__).parents[2] / "examples" / "app.py"
# Without these the browser itself asks the network for updates.
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1400,1400"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"),
)


LOGS: list[Path] = []


@pytest.fixture(scope="session")
def page(tmp_path_factory):
    """Address of the page of `examples/app.py`, served by a process of its own, outside of the tree."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("app")
    LOGS.append(folder / "log")
    environment = os.environ | {"GRADIO_TEMP_DIR": str(folder), "HF_HUB_OFFLINE": "1"}
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, APP, "--port", str(port)], cwd=folder, env=environment, stdout=log, stderr=log
        )
    address = f"http://127.0.0.1:{port}"
    try:
        until(lambda: server.poll() is not None or answers(address), seconds=300)
        assert server.poll() is None, (folder / "log").read_text()
        yield address
    finally:
        server.terminate()
        server.wait(20)


@pytest.fixture
def page_log(page):
    """What the server said so far."""
    return LOGS[-1]


@pytest.fixture
def browser(page):
    options = webdriver.ChromeOptions()
    for flag in FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService("/usr/bin/chromedriver"))
    driver.get(page)
    try:
        yield driver
    finally:
        driver.quit()


def answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5) as reply:
            return reply.status == 200
    except (OSError, http.client.HTTPException):  # of another program, where it took the port meanwhile
        return False
