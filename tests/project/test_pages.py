"""The pages in docs/: their Python blocks run, their commands parse or run, and they have a place in an index."""

import ast
import dataclasses
import re
import shlex
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest

from a2c_compiled import cli, distributions, estimators, functional
from a2c_compiled.kernels.scan_forms import FORMS
from a2c_compiled.training import TrainConfig
from a2c_compiled.training.presets import PRESETS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = {path.relative_to(DOCS).as_posix(): path.read_text() for path in sorted(DOCS.rglob("*.md"))}
PYTHON = re.compile(r"```python\n(.*?)```", re.DOTALL)

# Pages whose Python blocks a test of their subject runs.
RUN_ELSEWHERE = {
    "action_spaces.md": "environments/test_action_spaces.py",
    "environments.md": "training/test_own_environments.py",
    "interfaces.md": "export/test_interfaces.py",
    "other_trainers.md": "integrations/other_trainers.py",
    "smaller_files.md": "export/test_smaller_files.py",
}
# Text of pages that train for long, and what runs instead.
SHORTER = {
    "torchrl_mujoco.md": ("total_frames = 640, 64, 100_480", "total_frames = 640, 64, 1_280"),
    "quick_start.md": ("range(300)", "range(100)"),
    "own_loop.md": ('"LunarLander-v3", 32, 16, 3_000_000', '"CartPole-v1", 32, 16, 51_200'),
}
PRINTED = {
    "own_loop.md": "done: expected the shape of reward, [32, 8], got [31, 8]",
    "quick_start.md": "equal to eager",
    "export.md": "equal to eager",
    "from_torchrl.md": "Acceleration(calls=2, fallbacks={})",
    "from_stable_baselines3.md": "Acceleration(calls=8, fallbacks={})",
    "files.md": '{"observation": ["N", 4]}',
}
NEEDS = {
    "torchrl_mujoco.md": "mujoco",
    "from_torchrl.md": "torchrl",
    "from_stable_baselines3.md": "stable_baselines3",
}
# Pages whose first Python block is a file that the reader saves, with its name.
SAVED = {"own_environment.md": "reach.py"}

# Programs in C++ that a page may include, and the test that compiles each.
PROGRAMS = {
    "examples/cartpole.h": "examples/test_examples.py",
    "examples/run_policy.cpp": "examples/test_examples.py",
    "examples/run_policy_onnx.cpp": "examples/test_examples.py",
    "tests/export/run_torchscript.cpp": "export/test_torchscript_cpp.py",
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("page", [page for page, text in PAGES.items() if PYTHON.search(text) and page not in RUN_ELSEWHERE])
def test_the_blocks_of_a_page_run_in_order(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if page in NEEDS:
        pytest.importorskip(NEEDS[page])
    monkeypatch.chdir(tmp_path)
    text = PAGES[page]
    if page in SHORTER:
        assert SHORTER[page][0] in text
        text = text.replace(*SHORTER[page])
    save_first_block(page, tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    session: dict[str, object] = {"__name__": page}
    for block in PYTHON.findall(text):
        exec(compile(block, page, "exec"), session)
    assert PRINTED.get(page, "") in capsys.readouterr().out


def save_first_block(page: str, folder: Path) -> None:
    """Writes the first Python block of a page to a file, if the page tells the reader to save it."""
    if page in SAVED:
        assert f"Save this as `{SAVED[page]}`" in PAGES[page]
        (folder / SAVED[page]).write_text(PYTHON.findall(PAGES[page])[0])


def test_the_tests_that_run_other_pages_name_them() -> None:
    for page, test in RUN_ELSEWHERE.items():
        source = (ROOT / "tests" / test).read_text()
        cases = (ROOT / "tests" / "action_space_cases.py").read_text()
        assert PYTHON.search(PAGES[page])
        assert page in source + cases
        assert "```python" in source


# Commands of ```sh blocks besides a2c-compiled, which the tests do not run, or run elsewhere.
OTHER_COMMANDS = {
    "pip": "installs",
    "torchrun": "tests/training/test_distributed_training.py starts it",
    "g++": "tests/examples/test_examples.py compiles the program",
}


def commands() -> list[tuple[str, str]]:
    """Page and line of every command in a ```sh block."""
    return [
        (page, line)
        for page, text in PAGES.items()
        for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
        for line in block.splitlines()
    ]


def test_every_command_of_a_page_has_options_that_exist() -> None:
    assert len(commands()) > 10
    for page, line in commands():
        program, *words = shlex.split(line, comments=True)
        if program == "a2c-compiled":
            cli._parser(words[0]).parse_args(words)
        else:
            assert program in OTHER_COMMANDS or line in {command for run in RUN.values() for command, _ in run}, (
                f"{page}: {line}"
            )


# The commands of a page that run here in their order, with the options that make them short.
RUN = {
    "running.md": (
        ("a2c-compiled train --preset cartpole --out runs/cartpole", "--total-steps 2000 --num-envs 8 --no-compile"),
        ("a2c-compiled train --resume --out runs/cartpole", "--total-steps 3000"),
        ("a2c-compiled eval runs/cartpole --video cartpole.gif", "--episodes 4"),
        ("a2c-compiled eval runs/cartpole", "--episodes 4"),
        ("a2c-compiled plot runs/cartpole --out curves.png", ""),
        ("a2c-compiled export runs/cartpole", "--format onnx"),
        ("a2c-compiled verify runs/cartpole/export", ""),
        ("python runs/cartpole/export/play_policy.py runs/cartpole/export/policy.onnx", ""),
        ("python runs/cartpole/export/learn_policy.py runs/cartpole/export/train_step.onnx", "--total-steps 2048"),
    ),
    "own_environment.md": (
        (
            "a2c-compiled train --env reach:Reach --num-envs 16 --total-steps 100000 --lr 3e-3 --normalize-rewards --out runs/reach",
            "--total-steps 512 --no-compile",
        ),
        ("a2c-compiled eval runs/reach --env reach:Reach", "--episodes 4"),
        ("a2c-compiled export runs/reach --env reach:Reach", "--format onnx --graph policy"),
        ("python runs/reach/export/play_policy.py runs/reach/export/policy.onnx --env reach:Reach", "--episodes 4"),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN)
def test_the_commands_of_a_page_run_in_order(page: str, tmp_path: Path) -> None:
    save_first_block(page, tmp_path)
    written = {line for _, line in commands()}
    for command, shorter in RUN[page]:
        assert command in written
        program, *words = shlex.split(f"{command} {shorter}")
        start = [sys.executable] if program == "python" else [sys.executable, "-m", "a2c_compiled.cli"]
        done = subprocess.run([*start, *words], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"


def test_every_page_has_a_place_in_an_index() -> None:
    for page in PAGES:
        folder = Path(page).parent
        index = PAGES[(folder / "index.md").as_posix()]
        entries = [line for block in re.findall(r"```{toctree}\n(.*?)```", index, re.DOTALL) for line in block.splitlines()]
        name = Path(page).stem
        assert name == "index" or any(fnmatch(name, entry) for entry in entries), f"{page}: expected in a toctree"


def test_every_link_to_a_file_leads_to_one() -> None:
    for page, text in PAGES.items():
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", text):
            if not target.startswith("pictures/made/"):  # drawn when the site is built, which fails if one is missing
                assert ((DOCS / page).parent / target).exists(), f"{page}: {target}"


def test_every_external_link_has_the_form_of_an_address() -> None:
    for page, text in PAGES.items():
        for address in re.findall(r"\]\((http[^)]*)\)", text):
            assert re.fullmatch(r"https://[\w.-]+\.[a-z]+(/[\w.~/#%+-]*)?", address), f"{page}: {address}"


def test_every_block_of_cpp_is_part_of_a_program_that_the_tests_compile() -> None:
    for page, text in PAGES.items():
        assert "```cpp" not in text, f"{page}: expected a literalinclude of one of {', '.join(PROGRAMS)}"
        for included in re.findall(r"```{literalinclude} (\S+)", text):
            program = (DOCS / included).resolve()
            test = (ROOT / "tests" / PROGRAMS[program.relative_to(ROOT).as_posix()]).read_text()
            assert program.stem in test


def test_the_command_that_compiles_a_program_is_that_of_the_example() -> None:
    compiling = [line for _, line in commands() if line.startswith("g++")]
    assert len(compiling) == 2
    for command, name in zip(compiling, ("run_policy", "run_policy_onnx"), strict=True):
        head = (ROOT / "examples" / f"{name}.cpp").read_text().split("// Prints")[0].replace("\\\n//", "")
        head = head.replace("$T/", "$TORCH/").replace("$O/", "$ONNXRUNTIME/").replace("examples/", "")
        assert " ".join(command.split()) in " ".join(head.split())


def test_the_table_of_presets_has_their_options() -> None:
    rows = dict(re.findall(r"^\| (`\w+`|the defaults) \| (none: the defaults|`\w+=.*`) \|$", PAGES["running.md"], re.MULTILINE))
    options = {
        name.strip("`"): {key: ast.literal_eval(value) for key, value in re.findall(r"`(\w+)=(.*?)`", row)}
        for name, row in rows.items()
    }
    defaults = options.pop("the defaults")
    assert options == PRESETS
    every = dataclasses.asdict(TrainConfig())
    assert defaults == {name: every[name] for name in defaults}
    assert defaults.keys() >= {name for preset in PRESETS.values() for name in preset} - {"autoreset", "solved_return"}


def test_every_estimator_and_distribution_is_on_its_page() -> None:
    for page, module in (("estimators.md", functional), ("estimators.md", estimators), ("distributions.md", distributions)):
        missing = [name for name in module.__all__ if not re.search(rf"\b{name}\b", PAGES[page])]
        assert missing == [], page


def test_the_table_of_forms_is_that_of_the_kernels() -> None:
    rows = {
        cells[0].strip("`"): cells[1:]
        for line in PAGES["design.md"].splitlines()
        if len(cells := [cell.strip() for cell in line.strip("|").split("|")]) == 6
    }
    for form in FORMS:
        if not form.name.endswith(("_backward", "_transposed")):
            operands = [", ".join(names) for names in (form.coefficients, form.values, form.flags, form.outputs)]
            assert rows[form.name] == [*operands, "reverse" if form.reverse else "forward"]
