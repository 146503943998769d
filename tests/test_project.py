"""Files for users and contributors: the GitHub Action, the pre-commit hook, workflows, names and versions."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).parent.parent
PROJECT = (ROOT / "pyproject.toml").read_text("utf-8")
VERSION = re.findall(r'^version = "(.*)"', PROJECT, re.MULTILINE)[0]
OWNER = re.findall(r'^Repository = "https://github.com/(.*)"', PROJECT, re.MULTILINE)[0]
ACTION = yaml.safe_load((ROOT / "action.yml").read_text("utf-8"))
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
needs_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")


@pytest.fixture
def models(tmp_path):
    """A model without findings of severity error, and one with a NaN, in a folder with a space in its name."""
    folder = tmp_path / "two models"
    folder.mkdir()
    weights = {"weight": torch.randn(60, 60, generator=torch.Generator().manual_seed(0))}
    save_file(weights, folder / "good.safetensors")
    weights["weight"][0, 0] = float("nan")
    save_file(weights, folder / "nan.safetensors")
    return folder


def run(command, folder, **environment):
    """Run a command with ``python`` as the interpreter of the tests."""
    python = folder / "bin" / "python"
    if not python.exists():
        python.parent.mkdir()
        python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        python.chmod(0o755)
    environment = {**os.environ, **environment, "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def run_action(folder, models, **inputs):
    """Run the step that analyses, with its environment as GitHub would fill it in."""
    (step,) = [step for step in ACTION["runs"]["steps"] if step.get("id") == "analyse"]
    values = {name: str(value.get("default", "")) for name, value in ACTION["inputs"].items()}
    values |= {"models": models, **{name.replace("_", "-"): value for name, value in inputs.items()}}
    environment = {"GITHUB_STEP_SUMMARY": str(folder / "summary.md")}
    for name, value in step["env"].items():
        given = re.sub(r"\$\{\{ inputs\.([\w-]+) \}\}", lambda match: values[match[1]], value)
        environment[name] = given.replace("${{ runner.temp }}", str(folder))
    (folder / "step.sh").write_text(step["run"], "utf-8")
    # as GitHub runs a step with `shell: bash`
    return run(["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", "step.sh"], folder, **environment)


@pytest.mark.slow
@needs_bash
def test_the_action_fails_on_a_finding_and_keeps_all_reports(models, tmp_path):
    result = run_action(
        tmp_path, "\ntwo models/*.safetensors", fail_on="nan,constant", options="--estimator ks --no-split"
    )
    assert result.returncode == 1, result.stderr
    assert "::error title=tempbalance::two models/nan.safetensors: exit status 3" in result.stdout
    assert result.stdout.count("::error") == 1
    names = {path.name for path in (tmp_path / "tempbalance").iterdir()}
    assert names == {
        f"{name}{suffix}"
        for name in ("1-two_models_good.safetensors", "2-two_models_nan.safetensors")
        for suffix in (".html", ".json", ".txt")
    }
    report = tmp_path / "tempbalance" / "1-two_models_good.safetensors.json"
    assert '"estimator": "KS(' in report.read_text("utf-8")
    assert "### two models/nan.safetensors" in (tmp_path / "summary.md").read_text("utf-8")


@needs_bash
def test_the_action_fails_without_a_model(tmp_path):
    result = run_action(tmp_path, "\n")
    assert (result.returncode, "the input models is empty" in result.stdout) == (1, True)


@pytest.mark.slow
@needs_bash
def test_the_hook_analyses_every_file(models, tmp_path):
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text("utf-8"))
    files = [str(models / f"{name}.safetensors") for name in ("nan", "good")]
    assert all(re.search(hook["files"], file) for file in files)
    command = [*shlex.split(hook["entry"]), *hook["args"]]
    result = run([*command, *files], tmp_path)
    assert result.returncode == 1
    assert "nan.safetensors" in result.stdout and "good.safetensors" in result.stdout


def test_pages_name_the_repository_and_the_version_of_pyproject():
    pages = [path for path in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.cff"))]
    text = "\n".join(path.read_text("utf-8") for path in pages)
    named = re.findall(r"(?:github\.com/|uses: )([\w-]+/tempbalance)\b", text)
    assert set(named) == {OWNER}
    assert set(re.findall(r"(?:uses: \S+/tempbalance@|rev: )v([\d.]+)", text)) == {VERSION}


def test_pre_commit_has_the_pinned_linter():
    hooks = (ROOT / ".pre-commit-config.yaml").read_text("utf-8")
    pinned = re.findall(r"^ruff==(.*)$", (ROOT / "constraints.txt").read_text("utf-8"), re.MULTILINE)
    assert re.findall(r"ruff-pre-commit\n    rev: v(\S+)", hooks) == pinned


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_have_least_permissions_and_existing_commands(path):
    text = path.read_text("utf-8")
    workflow = yaml.safe_load(text)
    assert workflow["permissions"] == {"contents": "read"}
    assert all("timeout-minutes" in job for job in workflow["jobs"].values() if "uses" not in job)
    verbs = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    used = set(re.findall(r"run: make ([a-z]+)", text))
    used |= {
        verb
        for job in workflow["jobs"].values()
        for verb in job.get("strategy", {}).get("matrix", {}).get("command", ())
    }
    assert used <= verbs


def test_every_supported_python_is_tested():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text("utf-8"))
    versions = workflow["jobs"]["test"]["strategy"]["matrix"]["python"]
    assert versions[0] == re.findall(r'^requires-python = ">=(.*)"', PROJECT, re.MULTILINE)[0]
    assert [int(version.partition(".")[2]) for version in versions] == list(range(10, 10 + len(versions)))
