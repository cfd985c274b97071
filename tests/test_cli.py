"""The console command; the functions that its commands call have their own tests."""

import subprocess
import sys
from pathlib import Path

import fake_study
import pytest

from mae_core import cli


def test_help_names_every_command_and_what_it_does(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["--help"])
    assert ended.value.code == 0
    told = " ".join(capsys.readouterr().out.split())
    for command in cli.COMMANDS:
        assert f"{command.__name__} {command.__doc__.splitlines()[0]}" in told


@pytest.mark.parametrize("command", [command.__name__ for command in cli.COMMANDS])
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main([command, "--help"])
    assert ended.value.code == 0
    assert f"usage: mae-core {command}" in capsys.readouterr().out


@pytest.mark.parametrize("words", [[], ["recove"], ["parameters", "params/smoke.yaml", "a", "0", "pretrian"]])
def test_a_command_that_is_not_there_is_told_with_what_is(words, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert ended.value.code == 2
    assert "usage: mae-core" in capsys.readouterr().err


def test_an_error_is_one_sentence(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["recover", "missing.yaml"])
    assert ended.value.code == "ParameterError: the study file missing.yaml cannot be read: No such file or directory"


@pytest.mark.parametrize("parameters", ["laptop", "{study: laptop", "[1]", ""])
def test_a_table_of_no_parameters_is_refused(parameters, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["table", parameters])
    assert ended.value.code == f"ParameterError: {parameters!r} does not name parameters: write '{{study: laptop}}'"


def test_a_study_without_results_has_no_table(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        cli.main(["table", "{study: mine}"])
    assert ended.value.code.startswith("ParameterError: outputs/mine holds no results")


def told_by(*words):
    with pytest.raises(SystemExit) as ended:
        cli.main([str(word) for word in words])
    return ended.value.code


def test_what_is_no_name_no_notebook_or_no_place_to_write_is_one_sentence(tmp_path, monkeypatch):
    assert told_by("table", "{1: 2}").startswith("ParameterError: 1 is not a parameter of report; there are study, cases")
    monkeypatch.chdir(tmp_path)
    for content in ("text", "[]", "{}"):
        Path("no.ipynb").write_text(content, encoding="utf-8")
        assert told_by("render", "no.ipynb", "out").startswith("ExportError: no.ipynb is no notebook: name an executed one")
    fake_study.write()
    Path("outputs/fake/results.csv").mkdir()
    reading, writing = (told_by("table", f"{{study: fake{more}}}") for more in ("", ", cases: [random-75], seeds: [0]"))
    assert (
        reading == writing == "IsADirectoryError: outputs/fake/results.csv (Is a directory): check its name and permissions"
    )


@pytest.mark.parametrize("words", ["nowhere", "nowhere/report.ipynb"])
def test_results_that_are_not_there_are_no_traceback(words, tmp_path):
    with pytest.raises(SystemExit) as ended:
        cli.main(["render", words, str(tmp_path / "out")])
    told = f"ParameterError: {words} holds no results: give a study's folder, such as outputs/laptop"
    assert (ended.value.code, (tmp_path / "out").exists()) == (told, False)


def test_help_starts_without_torch():
    script = "import sys; from mae_core import cli\ntry: cli.main(['--help'])\nfinally: assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
