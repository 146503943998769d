"""Balancing from a YAML file, through LightningCLI."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import pytest

import tempbalance as tb

from .test_lightning import loader, make_module

pl = pytest.importorskip("lightning.pytorch")
pytest.importorskip("jsonargparse")

from lightning.pytorch.cli import LightningCLI  # noqa: E402

PLAIN = make_module(pl)


class Net(type(PLAIN)):
    def train_dataloader(self) -> Any:
        return loader()


def my_recipe(high: float = 1.5) -> tb.Recipe:
    """A recipe of the user."""
    return tb.Recipe(name="theirs", assignment=tb.assign.Linear(0.5, high), every=tb.Every(steps=2))


RECIPES = {
    "name": "recipe: llr:every=2",
    "function": """
        recipe:
          class_path: tempbalance.recipes.model_balancing_sciml
          init_args: {strength: 0.5}
    """,
    "own function": f"""
        recipe:
          class_path: {__name__}.my_recipe
          init_args: {{high: 2.0}}
    """,
    "fields": """
        recipe:
          name: mine
          assignment:
            class_path: tempbalance.assign.Linear
            init_args: {low: 0.5, high: 2.0}
          select: {exclude: ["net.0*"]}
          every: {steps: 2}
    """,
}
EXPECTED = {
    "name": tb.study.read_recipe("llr:every=2"),
    "function": tb.recipes.model_balancing_sciml(strength=0.5),
    "own function": my_recipe(2.0),
    "fields": tb.Recipe(
        name="mine",
        assignment=tb.assign.Linear(0.5, 2.0),
        select=tb.Select(exclude=("net.0*",)),
        every=tb.Every(steps=2),
    ),
}


def config(folder: Path, recipe: str, more: str = "") -> Path:
    """Write a file with one callback."""
    head = f"""
    seed_everything: 0
    trainer:
      max_epochs: 1
      accelerator: cpu
      logger: false
      enable_progress_bar: false
      enable_model_summary: false
      enable_checkpointing: false
      default_root_dir: {folder}
      callbacks:
        - class_path: tempbalance.integrations.lightning.BalanceCallback
          init_args:
    """
    arguments = "\n".join(textwrap.dedent(text).strip("\n") for text in (recipe, more))
    path = folder / "given.yaml"
    path.write_text(textwrap.dedent(head).rstrip() + "\n" + textwrap.indent(arguments, " " * 8), "utf-8")
    return path


def run(path: Path, *args: str, **options: Any) -> Any:
    """Run ``fit`` from a file, and return the callback."""
    cli = LightningCLI(Net, args=["fit", "--config", str(path), *args], **options)
    return next(each for each in cli.trainer.callbacks if hasattr(each, "balancer"))


@pytest.mark.parametrize("form", RECIPES)
def test_a_recipe_is_given_by_name_by_function_or_by_its_fields(tmp_path, form):
    callback = run(config(tmp_path, RECIPES[form]), save_config_callback=None)
    assert callback.recipe == EXPECTED[form]
    assert [refresh.step for refresh in callback.balancer.history][:1] == [0]


def test_the_other_arguments_are_given_beside_it(tmp_path):
    more = f"""
    exact: true
    delay: 1
    on_refresh:
      - class_path: tempbalance.integrations.loggers.TensorBoardLogger
        init_args: {{writer: {tmp_path}/runs}}
    """
    callback = run(config(tmp_path, RECIPES["name"], more), save_config_callback=None)
    assert [(refresh.step, refresh.applied) for refresh in callback.balancer.history] == [(0, 1), (2, 3), (4, 5)]
    assert list((tmp_path / "runs").glob("events*"))


def test_the_file_that_lightning_saves_beside_a_run_repeats_it(tmp_path):
    first = run(config(tmp_path, RECIPES["fields"]))
    again = run(tmp_path / "config.yaml", save_config_callback=None)
    assert again.recipe == first.recipe
    assert again.balancer.units == first.balancer.units


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("recipe: magic", "there is no method 'magic'"),
        ("recipe: llr:strength=1", "llr has no parameter strength"),
        ("recipe: plain", "plain: expected a recipe"),
        ("recipe: llr:control=shuffled", "expected a recipe"),
    ],
)
def test_a_name_that_is_no_recipe_is_refused(tmp_path, recipe, message):
    with pytest.raises(ValueError, match=message):  # jsonargparse adds what it has tried
        run(config(tmp_path, recipe), save_config_callback=None)
