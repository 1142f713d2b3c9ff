"""A run in a notebook: what a real kernel's cell shows."""

import re

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

TRAINING = """
import os, time, warnings
import torch
from torch import nn
from trackmetrics import Tracker
warnings.simplefilter("ignore")
torch.set_num_threads(1)
net = nn.Linear(4, 2)
optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
def train(progress):
    with Tracker("t", dev=[], train=[], hyperparameters={"num_epochs": 2}, progress=progress) as run:
        for _ in range(2):
            with run.epoch():
                for _ in run.progress(range(3)):
                    optimizer.zero_grad()
                    nn.functional.cross_entropy(net(torch.ones(2, 4)), torch.tensor([0, 1])).backward()
                    optimizer.step()
                    time.sleep(0.3)
"""


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """The outputs of each cell, and all that its displays were told on the way."""
    cells = [
        TRAINING,
        "train('auto')",
        "train(True)",
        "train(False)",
        "import os; os.environ['RANK'] = '1'; train(True)",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    folder = tmp_path_factory.mktemp("notebook")
    updates = []

    class Client(nbclient.NotebookClient):
        def process_message(self, message, cell, index):
            if message["msg_type"] in ("display_data", "update_display_data"):
                updates.append((index, message["content"]["data"]))
            return super().process_message(message, cell, index)

    Client(notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(folder)}}).execute()
    return [cell.outputs for cell in notebook.cells], updates


@pytest.mark.parametrize("cell", [1, 2])
def test_a_table_stays(shown, cell):
    """A row for each epoch, the final results, where the file is: as HTML, and as text where there is none."""
    line, table = shown[0][cell]
    html = table["data"]["text/html"]
    assert re.findall(r"<tr><td[^>]*>(\w+)</td>", html) == ["1", "2", "final"]
    assert "t_training_metrics.json" in html
    rows = table["data"]["text/plain"].splitlines()
    assert [row.split()[0] for row in rows] == ["epoch", "1", "2", "final", "metrics"]
    assert line["data"] == {"text/html": "", "text/plain": ""}


def test_the_line_was_live(shown):
    """It was drawn anew in its place: batches, epochs, a bar."""
    texts = [data["text/plain"] for index, data in shown[1] if index == 1]
    lines = [text for text in texts if "batch" in text]
    assert any(re.match(r"epoch 1/2  ━+─+  batch 2/3  .*/s  loss \d", text) for text in lines), lines
    assert any(re.match(r"epoch 2/2 .* batch 2/3 .* left", text) for text in lines), lines
    assert any('<progress value="0.6667" max="1">' in data["text/html"] for _, data in shown[1])


@pytest.mark.parametrize("cell", [3, 4])
def test_nothing_where_nothing_is_wanted(shown, cell):
    """`progress=False`, and a process that isn't the first of several."""
    assert shown[0][cell] == []
