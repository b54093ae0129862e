"""The sampling notebook, executed top to bottom in a kernel of its own."""

from pathlib import Path

import nbclient
import nbformat
import pytest

from anygpt_jax import shipped

NOTEBOOK = Path(__file__).parent.parent / "launch" / "notebooks" / "sampling.ipynb"


@pytest.mark.skipif(not shipped.is_shipped(), reason="this copy of the package holds no trained model")
def test_sampling_notebook_runs_and_shows_each_direction():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    shown = [
        output
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if output.output_type == "display_data"
    ]
    kinds = [key for output in shown for key in output.data]
    assert kinds.count("image/png") == 2  # the single picture and the grid
    assert sum("<audio" in output.data.get("text/html", "") for output in shown) == 2
    texts = [
        output.text
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if output.output_type == "stream" and output.name == "stdout"
    ]
    assert len([text for text in texts if text.strip()]) == 4  # what the model is, and three answers
