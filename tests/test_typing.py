"""What type checkers say of a user's program (tests/support/typed_use.py)."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("support") / "typed_use.py"
PACKAGES = Path(str(files("trackmetrics"))).parent


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("mypy")


def errors_of(checker, text, cache):
    """The lines of which a checker complains in a program, with what it says."""
    Path("program.py").write_text(text, encoding="utf-8")
    if checker == "mypy":
        if importlib.util.find_spec("mypy") is None:
            pytest.skip("mypy isn't installed")
        command = [sys.executable, "-m", "mypy", "--strict", "--warn-unreachable", "--cache-dir", cache, "program.py"]
        command[-1:-1] = ["--no-error-summary", "--hide-error-context"]
    else:
        if shutil.which("pyright") is None:
            pytest.skip("Pyright isn't installed")
        rules = {"typeCheckingMode": "strict", "reportUnnecessaryTypeIgnoreComment": "error"}
        Path("pyrightconfig.json").write_text(json.dumps({**rules, "extraPaths": [str(PACKAGES)]}))
        command = ["pyright", "--pythonpath", sys.executable, "program.py"]
    in_site = PACKAGES.name == "site-packages"  # where mypy looks by itself, and refuses to be sent
    environment = os.environ if in_site else {**os.environ, "MYPYPATH": str(PACKAGES)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.stderr == ""
    return [line for line in done.stdout.splitlines() if "program.py:" in line]


@pytest.mark.parametrize("checker", ["mypy", "pyright"])
def test_a_program_has_the_types_that_it_says(checker, cache):
    """Decorated functions, methods and coroutines are of their own types; a wrong argument, option or name is an error.

    An error that is expected is an ignored line, of which a checker complains where it isn't one.
    """
    assert errors_of(checker, PROGRAM.read_text(encoding="utf-8"), cache) == []


@pytest.mark.parametrize("checker", ["mypy", "pyright"])
def test_the_test_can_fail(checker, cache):
    """Another type, an error that isn't expected, and one that is and isn't there are one complaint each."""
    text = PROGRAM.read_text(encoding="utf-8")
    for written, wrong in (
        ("assert_type(train(net), torch.nn.Module)", "assert_type(train(net), int)"),
        ("train(net, num_epochs=3, by=1)  # type: ignore[call-arg]", "train(net, num_epochs=3, by=1)"),
        ("assert_type(record, RunRecord)", "assert_type(record, RunRecord)  # type: ignore[assert-type]"),
    ):
        assert text.count(written) == 1
        text = text.replace(written, wrong)
    assert len(errors_of(checker, text, cache)) == 3
