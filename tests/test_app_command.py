"""`s2clip app` before it serves: one line for what cannot be. What it serves is looked at in tests/app."""

import socket
import sys

import pytest
from command_line import one_line


@pytest.fixture
def served(monkeypatch):
    """What the page is asked to serve."""
    from s2clip.cli import page

    calls = []
    monkeypatch.setattr(page, "serve", lambda *arguments: calls.append(arguments))
    return calls


def test_the_page_is_served_as_asked(run, served):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    result = run("app", "--model", "vit-b-16", "--port", port)
    assert result.exit_code == 0, result.output
    assert served == [("ViT-B-16", None, "127.0.0.1", port)]
    assert f"http://127.0.0.1:{port}" in result.stderr


def test_a_taken_port_is_one_line(run, served):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = run("app", "--port", port)
    assert result.exit_code == 3
    assert one_line(result) == f"Error: --host 127.0.0.1 --port {port}: Address already in use"
    assert served == []


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--model", "ViT-B-99", "model: expected one of tiny, ViT-B-16"),
        ("--port", "0", "--port: expected 1 to 65535, received 0"),
        ("--port", "http", "'http' is not a valid integer"),
    ],
)
def test_usage_errors(run, served, option, value, message):
    result = run("app", option, value)
    assert result.exit_code == 2
    assert message in one_line(result)
    assert served == []


def test_a_missing_gradio_names_the_extra(run, monkeypatch):
    monkeypatch.setattr(sys.modules["s2clip.cli.app"], "find_spec", lambda name: None)
    result = run("app")
    assert result.exit_code == 3
    assert "app needs gradio: pip install 's2clip[demo]'" in result.stderr
