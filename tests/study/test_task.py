import functools
import math
import pickle
import random
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch

from tempbalance.errors import StudyError
from tempbalance.study import Configuration, load_task

PLAIN, BALANCED = Configuration("plain", None), Configuration("model_balancing_sciml", None)


class TestLoading:
    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("import nothing_of_the_kind", "cannot import .*No module named 'nothing_of_the_kind'"),
            ("def train(seed, method", "cannot import .*SyntaxError|was never closed"),
            ("raise SystemExit(3)", "cannot import .*SystemExit"),
            ("x = 1", r"has no function train\(seed, method, ...\)"),
        ],
    )
    def test_a_file_without_a_train_function_is_refused(self, tmp_path, text, message):
        path = tmp_path / "task.py"
        path.write_text(text)
        with pytest.raises(StudyError, match=message):
            load_task(path)

    def test_a_missing_file_or_one_that_is_not_python_is_refused(self, tmp_path):
        with pytest.raises(StudyError, match=r"there is no task file .*nowhere.py"):
            load_task(tmp_path / "nowhere.py")
        (tmp_path / "task.txt").write_text("x = 1")
        with pytest.raises(StudyError, match=r"must end in .py"):
            load_task(tmp_path / "task.txt")

    @pytest.mark.parametrize(
        ("methods", "message"),
        [
            ("['lora']", r"must give a class or function by name, as in \{'lora': Lora\}"),
            ("{'lora': 8}", "must give a class or function by name"),
            ("{'model_balancing': dict}", "'model_balancing' is taken, or is not a valid name"),
            ("{'plain': dict}", "'plain' is taken"),
            ("{'lora': dict}", "'lora' is taken"),
            ("{'lora:8': dict}", "'lora:8' is taken, or is not a valid name"),
        ],
    )
    def test_custom_methods_that_are_wrong_are_refused(self, task_file, methods, message):
        task_file.write_text(f"{task_file.read_text()}\nMETHODS = {methods}")
        with pytest.raises(StudyError, match=message):
            load_task(task_file)

    def test_a_task_can_import_modules_of_its_folder(self, tmp_path):
        (tmp_path / "beside_the_task.py").write_text("ANSWER = 42.0")
        body = ["import beside_the_task", "method.called = True", "return beside_the_task.ANSWER"]
        (tmp_path / "task.py").write_text("\n    ".join(["def train(seed, method):", *body]))
        assert load_task(tmp_path / "task.py").run(PLAIN, 0).metrics == {"test": 42.0}

    def test_a_model_in_a_cycle_is_freed_before_the_next_trial(self, monkeypatch):
        monkeypatch.setattr("tempbalance.study.task._LONG", 0.0)
        before = []

        def train(seed, method):
            model = torch.nn.Linear(2, 2)
            method.balance(None, None)
            alive = sum(each() is not None for each in before)
            before.append(weakref.ref(model))
            model.cycle = [model]
            return {"test": float(alive)}

        task = load_task(train)
        assert [task.run(PLAIN, seed).metrics["test"] for seed in range(3)] == [0.0, 0.0, 0.0]

    def test_a_function_can_be_a_task(self):
        def train(seed, method, scale=1.0):
            method.balance(None, None)
            return scale * seed

        task = load_task(train, {"scale": 2.0})
        assert (task.name, task.custom_methods) == ("train", {})
        assert task.run(PLAIN, 3).metrics == {"test": 6.0}
        assert task.digest == load_task(train).digest != load_task(lambda seed, method: 0.0).digest

    def test_the_digest_of_a_function_depends_on_the_values_that_it_has_from_elsewhere(self):
        def made(value):
            def train(seed, method):
                return value

            return train

        def other(seed, method, value):
            return value

        assert load_task(made(1)).digest == load_task(made(1)).digest != load_task(made(2)).digest
        objects = made(object()), made(object())  # whose addresses differ, as in another process
        assert load_task(objects[0]).digest == load_task(objects[1]).digest
        parts = [functools.partial(other, value=value) for value in (1, 1, 2)]
        assert load_task(parts[0]).name == "other"
        assert load_task(parts[0]).digest == load_task(parts[1]).digest != load_task(parts[2]).digest

    def test_the_digest_of_a_function_depends_on_the_constants_that_it_uses(self, task_file):
        task_file.write_text("N, M, SEEN = 1, 1, []\ndef train(seed, method, value=1): return N + len(SEEN)")
        function = load_task(task_file).function
        found = [load_task(function).digest]
        for name, value in (("M", 2), ("SEEN", [1]), ("N", 2)):
            function.__globals__[name] = value
            found.append(load_task(function).digest)
        function.__defaults__ = (2,)
        found.append(load_task(function).digest)
        assert found[0] == found[1] == found[2]
        assert len({*found}) == 3

    def test_a_partial_task_has_the_methods_and_hooks_of_its_module(self, task_file):
        task_file.write_text(f"{task_file.read_text()}\nMETHODS = {{'mine': dict}}\nSUPPORTS = ('loss',)")
        task = load_task(functools.partial(load_task(task_file).function, gain=1.0))
        assert (task.custom_methods, task.supports) == ({"mine": dict}, {"loss"})

    def test_another_process_can_unpickle_a_class_of_the_task(self, tmp_path, monkeypatch):
        monkeypatch.setattr(sys, "path", [*sys.path])
        path = tmp_path / "a_task_with_a_class.py"
        path.write_text("class Squares:\n    side = 3\ndef train(seed, method): return Squares")
        squares = load_task(path).function(0, None)
        code = f"import pickle, sys; sys.path[:] = {sys.path}; print(pickle.loads({pickle.dumps(squares())}).side)"
        assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout.strip() == b"3"
        again = tmp_path / "again" / path.name
        again.parent.mkdir()
        again.write_text(path.read_text())
        assert load_task(again).function(0, None) is not squares is sys.modules.pop(path.stem).Squares

    def test_arguments_are_checked_before_training(self, task_file):
        load_task(task_file, {"gain": 1.0}).check(Configuration("plain", 0.1))
        with pytest.raises(StudyError, match="unexpected keyword argument 'gian'"):
            load_task(task_file, {"gian": 1.0}).check(PLAIN)
        task_file.write_text("def train(seed, method, lr): ...")
        with pytest.raises(StudyError, match="missing a required argument: 'lr'"):
            load_task(task_file).check(PLAIN)

    @pytest.mark.parametrize("supports", ["'loss'", "('loss', 'speed')", "3"])
    def test_unknown_words_in_supports_are_refused(self, task_file, supports):
        task_file.write_text(f"{task_file.read_text()}\nSUPPORTS = {supports}")
        with pytest.raises(
            StudyError, match=r"SUPPORTS of .*toy.py must be a tuple of some of members, decay, epochs,"
        ):
            load_task(task_file)

    def test_a_method_that_needs_more_than_the_task_supports_is_refused(self, task_file):
        with pytest.raises(
            StudyError,
            match=r"ps_kd needs the hooks prepare, loss, after_step and labels \(class labels as targets\), which "
            r"toy.py does not support. If it does, add to SUPPORTS of its file",
        ):
            load_task(task_file).check(Configuration("ps_kd", None))
        task_file.write_text(f"{task_file.read_text()}\nSUPPORTS = ('prepare', 'loss', 'after_step', 'labels')")
        load_task(task_file).check(Configuration("ps_kd+llr", None))
        with pytest.raises(StudyError, match=r"lp_ft needs the hook start and pretrained \(a pre-trained model"):
            load_task(task_file).check(Configuration("lp_ft", None))
        load_task(task_file).check(Configuration("model_balancing", None))


class TestRunning:
    def test_a_task_that_does_not_call_a_hook_of_its_method_fails(self, tmp_path):
        body = ["method.balance(None, None)", "method.prepare(None, Training(0, 1, 1))", "return 1"]
        lines = ["from tempbalance.study import Training\ndef train(seed, method):", *body]
        (tmp_path / "task.py").write_text("\n    ".join(lines))
        run = load_task(tmp_path / "task.py").run(Configuration("snr", None), 0)
        assert "train did not call before_step of method, which snr needs" in run.error

    def test_custom_methods_are_passed_to_the_task(self, tmp_path):
        body = ["method.balance(None, None)", "return sum(method.custom)"]
        methods = "METHODS = {'a': lambda x: x, 'b': lambda: 10.0}\n"
        (tmp_path / "task.py").write_text(methods + "\n    ".join(["def train(seed, method):", *body]))
        task = load_task(tmp_path / "task.py")
        assert task.run(Configuration("a:x=2.5+b", None), 0).metrics == {"test": 12.5}

    def test_every_generator_is_seeded_and_restored(self, task_file):
        torch.manual_seed(7)
        before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
        task = load_task(task_file)
        first, again, other = (task.run(PLAIN, seed) for seed in (3, 3, 4))
        assert first.metrics == again.metrics != other.metrics
        after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
        assert torch.equal(before[0], after[0])
        assert before[1:] == after[1:]

    def test_a_task_that_changes_the_working_folder_leaves_it_as_it_was(self, task_file, monkeypatch):
        monkeypatch.chdir(task_file.parent)
        task_file.write_text(
            "import os\ndef train(seed, method):\n    os.chdir('/')\n    method.called = True\n    return 1"
        )
        assert load_task(task_file).run(PLAIN, 0).status == "ok"
        assert Path.cwd() == task_file.parent

    def test_the_trial_records_what_the_balancer_did(self, task_file):
        task = load_task(task_file)
        run = task.run(BALANCED, 0)
        assert (run.status, run.balance["refreshes"]) == ("ok", 1)
        assert run.balance["mean_multiplier"] > 1
        assert task.run(PLAIN, 0).balance == {}

    def test_the_imbalance_of_several_balancers_is_their_mean(self, task_file):
        lines = ["    other = torch.nn.Sequential(*(torch.nn.Linear(90, 90) for _ in range(3)))"]
        lines += ["    method.balance(torch.optim.SGD(other.parameters(), lr=lr), other).refresh()"]
        lines += ["    first, second = (balancer.history[0].imbalance for balancer in method.balancers)"]
        lines += ["    return {'test': first, 'other': second}", "    score ="]
        task_file.write_text(task_file.read_text().replace("    score =", "\n".join(lines)))
        run = load_task(task_file).run(BALANCED, 0)
        assert run.error == ""
        mean = (run.metrics["test"] + run.metrics["other"]) / 2
        assert run.balance["first_imbalance"] == run.balance["last_imbalance"] == pytest.approx(mean)

    def test_a_recipe_with_strength_0_equals_plain_bit_for_bit(self, task_file):
        weights = "    return model[0].weight.double().sum()\n    score ="
        task_file.write_text(task_file.read_text().replace("    score =", weights))
        task = load_task(task_file)
        plain, off, on = (
            task.run(Configuration(name, 0.3), 5).metrics
            for name in ("plain", "model_balancing_sciml:strength=0", "model_balancing_sciml")
        )
        assert off == plain != on

    def test_a_trial_that_raises_is_recorded_as_failed(self, task_file):
        run = load_task(task_file, {"raises": [2]}).run(PLAIN, 2)
        assert (run.status, run.metrics) == ("failed", {})
        assert "RuntimeError: seed 2 fails" in run.error
        assert "toy.py" in run.error

    def test_a_task_that_exits_fails_and_does_not_end_the_study(self, task_file):
        task_file.write_text("import sys\ndef train(seed, method):\n    sys.exit(1)")
        assert load_task(task_file).run(PLAIN, 0).status == "failed"

    def test_a_keyboard_interrupt_is_raised(self, task_file):
        task_file.write_text("def train(seed, method):\n    raise KeyboardInterrupt")
        with pytest.raises(KeyboardInterrupt):
            load_task(task_file).run(PLAIN, 0)

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_a_metric_that_is_not_finite_means_diverged(self, task_file, value):
        run = load_task(task_file, {"returns": {"test": value, "loss": 1}}).run(PLAIN, 0)
        assert run.status == "diverged"
        assert math.isnan(run.metrics["test"])
        assert run.metrics["loss"] == 1

    def test_a_metric_besides_test_and_validation_may_be_infinite(self, task_file):
        run = load_task(task_file, {"returns": {"test": 1, "perplexity": math.inf}}).run(PLAIN, 0)
        assert run.status == "ok"

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            ("good", "it returned 'good' for test"),
            ({"accuracy": 1.0}, "train must return a number, or a mapping of numbers with 'test'"),
            ({"test": 1.0, "note": "good"}, "it returned 'good' for note"),
            ([1, 2], r"it returned [1, 2] for test"),
            (torch.ones(2), "it returned tensor([1., 1.]) for test"),
        ],
    )
    def test_a_task_that_returns_no_number_fails(self, task_file, value, message):
        run = load_task(task_file, {"returns": value}).run(PLAIN, 0)
        assert run.status == "failed"
        assert message in run.error

    def test_a_task_may_return_a_tensor(self, task_file):
        tensor = torch.tensor(0.5, requires_grad=True)
        assert load_task(task_file, {"returns": tensor}).run(PLAIN, 0).metrics == {"test": 0.5}

    def test_a_task_that_does_not_call_balance_ends_the_study(self, task_file):
        with pytest.raises(StudyError, match=r"train of .* did not call method\.balance"):
            load_task(task_file, {"forgets": True}).run(BALANCED, 0)
