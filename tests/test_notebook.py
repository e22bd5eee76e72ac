"""The README's code in a notebook, run by a kernel of its own: results show themselves as pictures."""

import base64
import re
from io import BytesIO
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from PIL import Image

from s2clip import scenes

README = (Path(__file__).parent.parent / "README.md").read_text()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the kernel's messages, not ours
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_the_readme_shows_pictures_in_a_notebook(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    Image.fromarray(scenes.generate(0)[0]).save("photo.jpg")
    block = re.search(r"^```python\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)[1]
    cells = [nbformat.v4.new_code_cell(text) for text in (block, "result", "result.show(legend=False)", "segmenter")]
    notebook = nbformat.v4.new_notebook(cells=cells)
    NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    for cell, legend in ((notebook.cells[1], True), (notebook.cells[2], False)):
        (output,) = cell.outputs
        picture = Image.open(BytesIO(base64.b64decode(output.data["image/png"])))
        assert picture.width == 768
        assert (picture.height > 576) == legend  # of a scene of 128x96, and the legend below it
    assert notebook.cells[3].outputs[0].data["text/plain"].startswith("Segmenter(tiny")
    assert (tmp_path / "out/photo.coco.json").is_file()
