"""Makes the notebook of examples/cartpole_a2c.py: ``python docs/make_notebook.py`` writes ``examples/cartpole_a2c.ipynb``.

A line ``# %%`` of the script begins a cell of code, ``# %% [markdown]`` one of text.
"""

import json
import re
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).resolve().parents[1] / "examples" / "cartpole_a2c.py"
NOTEBOOK = SCRIPT.with_suffix(".ipynb")


def notebook(script: str) -> dict[str, Any]:
    """Returns the notebook of ``script`` as the content of its JSON file. The docstring of the script is not part of it."""
    _, *parts = re.split(r"^# %%(.*)\n", script, flags=re.MULTILINE)
    cells = [
        _cell(kind.strip() == "[markdown]", text.strip(), i)
        for i, (kind, text) in enumerate(zip(parts[::2], parts[1::2], strict=True))
    ]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}


def _cell(is_text: bool, text: str, index: int) -> dict[str, Any]:
    if is_text:
        text = re.sub(r"^# ?", "", text, flags=re.MULTILINE)
        return {"cell_type": "markdown", "id": f"cell-{index}", "metadata": {}, "source": text.splitlines(keepends=True)}
    source = {"execution_count": None, "outputs": [], "source": text.splitlines(keepends=True)}
    return {"cell_type": "code", "id": f"cell-{index}", "metadata": {}, **source}


if __name__ == "__main__":
    NOTEBOOK.write_text(json.dumps(notebook(SCRIPT.read_text()), indent=1) + "\n")
