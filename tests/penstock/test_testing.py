"""The plugin of ``penstock test``: order of tests, and no silent skips. Run on small suites of its own."""

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from penstock.testing import longest_files_first, may_be_picked, rank, unlawful

_RUN = """
import sys, pytest
from penstock.testing import Plugin
plugin = Plugin(allowed=sys.argv[1:], only_database="ONLY" in __import__("os").environ)
code = pytest.main(["-q", "-p", "no:cacheprovider", "."], plugins=[plugin])
print("\\n".join(plugin.summary()))
sys.exit(code)
"""


def run(folder: Path, code: str, *allowed: str, **environment: str) -> tuple[int, str]:
    (folder / "test_sample.py").write_text(textwrap.dedent(code))
    (folder / "pytest.ini").write_text("[pytest]\nmarkers =\n    e2e\n    faults\n    browser\n    django_db\n")
    kept = {name: value for name, value in os.environ.items() if name not in ("CI", "PYTEST_ADDOPTS")}
    kept["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    done = subprocess.run(
        [sys.executable, "-c", _RUN, *allowed],
        cwd=folder,
        env=kept | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


SKIPS = """
import pytest
def test_good(): pass
def test_poor(): pytest.skip("no Chromium")
@pytest.mark.skipif(True, reason="no GPU")
def test_other(): pass
"""


def test_skips_are_named_with_their_reasons_in_the_last_lines(tmp_path: Path) -> None:
    code, told = run(tmp_path, SKIPS)
    assert code == 0
    assert told.splitlines()[-2:] == ["skipped 1: no Chromium", "skipped 1: no GPU"]


def test_in_ci_a_skip_fails_the_run(tmp_path: Path) -> None:
    code, told = run(tmp_path, SKIPS, CI="true")
    assert code == 1
    assert "skipped 1: no Chromium  (fails the run: CI=true)" in told


def test_in_ci_allowed_reasons_do_not(tmp_path: Path) -> None:
    assert run(tmp_path, SKIPS, "Chromium$", "^no GPU", CI="true")[0] == 0
    assert run(tmp_path, SKIPS, "Chromium$", CI="true")[0] == 1


def test_a_module_that_is_skipped_whole_counts(tmp_path: Path) -> None:
    code, told = run(tmp_path, "import pytest\npytest.skip('not here', allow_module_level=True)", CI="true")
    assert code != 0
    assert "not here" in told


def test_nothing_skipped_is_said_too(tmp_path: Path) -> None:
    code, told = run(tmp_path, "def test_good(): pass", CI="true")
    assert (code, told.splitlines()[-1]) == (0, "nothing was skipped")


def test_expected_failures_are_no_skips(tmp_path: Path) -> None:
    body = "import pytest\n@pytest.mark.xfail(reason='known')\ndef test_it(): assert False"
    assert run(tmp_path, body, CI="true")[0] == 0


def test_cheap_tests_run_first(tmp_path: Path) -> None:
    body = """
    import pytest
    @pytest.mark.faults
    def test_a(): print("ran a")
    @pytest.mark.e2e
    def test_b(): print("ran b")
    def test_c(): print("ran c")
    """
    _, told = run(tmp_path, body, PYTEST_ADDOPTS="-s")
    assert re.findall(r"ran (\w)", told) == ["c", "b", "a"]


def test_processes_that_share_files_take_the_long_ones_first(tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n    slow\n")
    (tmp_path / "test_a.py").write_text("def test_it(): pass")
    (tmp_path / "test_b.py").write_text("def test_it(): pass\ndef test_more(): pass")
    (tmp_path / "test_c.py").write_text("import pytest\n@pytest.mark.slow\ndef test_it(): pass")
    shared = ("-n1", "--dist=loadfile", "--no-loadscope-reorder", "-p", "xdist.plugin", "-p", "penstock.testing")
    kept = {name: value for name, value in os.environ.items() if name not in ("CI", "PYTEST_ADDOPTS")}
    argv = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", *shared, "."]
    environment = kept | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(argv, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert re.findall(r"PASSED test_(\w)\.py", done.stdout) == ["c", "b", "b", "a"], done.stdout


def test_files_that_are_together_go_to_one_process(tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n    together\n")
    for name in "abcd":
        mark = 'import pytest\npytestmark = pytest.mark.together("one")\n' if name in "ac" else ""
        (tmp_path / f"test_{name}.py").write_text(f"{mark}def test_it(): pass\ndef test_too(): pass\n")
    shared = ("-n2", "--dist=loadfile", "--no-loadscope-reorder", "-p", "xdist.plugin", "-p", "penstock.testing")
    kept = {name: value for name, value in os.environ.items() if name not in ("CI", "PYTEST_ADDOPTS")}
    argv = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", *shared, "."]
    environment = kept | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(argv, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    found = re.findall(r"\[(gw\d)\].* PASSED test_(\w)\.py", done.stdout)
    assert len(found) == 8, done.stdout
    assert len({worker for worker, name in found if name in "ac"}) == 1, done.stdout
    assert len({worker for worker, _ in found}) == 2, done.stdout


def test_the_second_round_takes_the_tests_of_the_database_only(tmp_path: Path) -> None:
    body = """
    import pytest
    @pytest.mark.django_db
    def test_a(): print("ran a")
    @pytest.mark.django_db
    @pytest.mark.e2e
    def test_b(): print("ran b")
    def test_c(): print("ran c")
    @pytest.fixture
    def db(): pass
    def test_d(db): print("ran d")
    """
    _, told = run(tmp_path, body, PYTEST_ADDOPTS="-s", ONLY="1")
    assert "2 passed, 2 deselected" in told
    assert "ran a" in told
    assert "ran d" in told


@pytest.mark.parametrize(
    ("markers", "place"), [(["slow"], 0), (["browser"], 1), (["e2e", "vllm"], 4), (["faults", "timed"], 6)]
)
def test_the_most_expensive_marker_counts(markers: list[str], place: int) -> None:
    assert rank(markers) == place


class Item:
    def __init__(self, file: str, **markers: tuple[Any, ...]) -> None:
        self.path = Path(file)
        self.markers = {name: getattr(pytest.mark, name)(*args).mark for name, args in markers.items()}

    def get_closest_marker(self, name: str) -> pytest.Mark | None:
        return self.markers.get(name)


def test_files_that_others_would_wait_for_come_first() -> None:
    items = [
        Item("few.py"),
        *[Item("many.py")] * 3,
        Item("slow.py", slow=(), timeout=(60,)),
        *[Item("patient.py", slow=(), timeout=(600,))] * 2,
        Item("slow_too.py", slow=()),
        *[Item("slow_many.py", slow=())] * 4,
        Item("patient.py"),
    ]
    files = list(dict.fromkeys(item.path.stem for item in longest_files_first(items)))  # type: ignore[arg-type]
    assert files == ["patient", "slow", "slow_many", "slow_too", "many", "few"]


def test_reasons_are_matched_as_patterns() -> None:
    assert unlawful(["no GPU here", "no disk"], ["GPU"]) == ["no disk"]


@pytest.mark.parametrize("said", ["key mu_abcdef12_{}", "token pst_abcdef12_{}", "asked: canary in the coal mine"])
def test_a_secret_or_a_prompt_in_a_log_fails_the_run(tmp_path: Path, said: str) -> None:
    # In parts, so that this suite's own output does not have it.
    text = said.format("x" * 24)
    middle = len(text) // 2
    code, told = run(
        tmp_path, f"import logging\ndef test_it(): logging.getLogger().error({text[:middle]!r} + {text[middle:]!r})"
    )
    assert code == 1
    assert "a secret or a prompt was logged by test_sample.py::test_it  (fails the run)" in told
    assert run(tmp_path, "import logging\ndef test_it(): logging.getLogger().error('mu_abcdef12 revoked')")[0] == 0


PROCESSES = "e2e or faults"


@pytest.mark.parametrize(
    ("text", "expression", "wanted"),
    [
        ("def test_it(): pass", PROCESSES, False),
        ("def test_it(): pass", f"not ({PROCESSES})", True),
        ("pytestmark = pytest.mark.e2e", PROCESSES, True),
        ("pytestmark = pytest.mark.e2e", f"not ({PROCESSES})", False),
        ("pytestmark = [\n    pytest.mark.slow,\n    pytest.mark.e2e,\n]", f"not ({PROCESSES})", False),
        ("pytestmark: list = [pytest.mark.e2e]", f"not ({PROCESSES})", False),
        # One of its tests may have it, another may not.
        ("@pytest.mark.e2e\ndef test_it(): pass", PROCESSES, True),
        ("@pytest.mark.e2e\ndef test_it(): pass", f"not ({PROCESSES})", True),
        ("pytestmark = [pytest.mark.e2e]\n@pytest.mark.faults\ndef test_it(): pass", "e2e and not faults", True),
        ("pytestmark = [pytest.mark.e2e, pytest.mark.faults]", "e2e and not faults", False),
        ("param('a', marks=mark.e2e)", PROCESSES, True),
    ],
)
def test_a_module_without_a_test_to_pick_is_known_by_its_text(text: str, expression: str, wanted: bool) -> None:
    assert may_be_picked(text, expression) is wanted


def test_such_a_module_is_not_imported(tmp_path: Path) -> None:
    (tmp_path / "test_other.py").write_text("import pytest\npytestmark = pytest.mark.e2e\nraise RuntimeError")
    code, told = run(tmp_path, "def test_good(): pass", PYTEST_ADDOPTS="-m 'not e2e'")
    assert code == 0, told
    assert "1 passed" in told
    assert run(tmp_path, "def test_good(): pass")[0] != 0
