"""The scalars of the loggers are read back from their files and servers."""

import json
import struct
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import tempbalance as tb
from tempbalance.integrations.loggers import MLflowLogger, TensorBoardLogger, WandbLogger, scalars, summary

SUMMARY = {
    "tempbalance/imbalance": 1.5,
    "tempbalance/alpha_min": 2.0,
    "tempbalance/alpha_mean": 3.5,
    "tempbalance/alpha_max": 5.0,
    "tempbalance/multiplier_min": 0.5,
    "tempbalance/multiplier_mean": 1.0,
    "tempbalance/multiplier_max": 1.5,
    "tempbalance/measured": 3.0,
    "tempbalance/seconds": 0.25,
}
PER_UNIT = {
    "tempbalance_alpha/blocks.0": 2.0,
    "tempbalance_alpha/blocks.1": 5.0,
    "tempbalance_multiplier/blocks.0": 0.5,
    "tempbalance_multiplier/blocks.1": 1.5,
    "tempbalance_multiplier/blocks.2": 1.0,
}


def test_scalars_exclude_nan(refresh):
    assert scalars(refresh) == SUMMARY | PER_UNIT


def test_scalars_without_any_alpha_have_no_alpha_tags(refresh):
    without_alpha = replace(refresh, units=refresh.units[2:])
    assert set(scalars(without_alpha)) == {
        *("tempbalance/measured", "tempbalance/seconds"),
        *(f"tempbalance/multiplier_{what}" for what in ("min", "mean", "max")),
        "tempbalance_multiplier/blocks.2",
    }
    assert summary(without_alpha) == {"multiplier_min": 1.0, "multiplier_max": 1.0}


class TestTensorBoard:
    @staticmethod
    def read(folder: Path) -> dict[str, dict[int, float]]:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(folder)).Reload()
        return {tag: {event.step: event.value for event in events.Scalars(tag)} for tag in events.Tags()["scalars"]}

    def test_tensorboard_writes_a_folder_that_can_be_read_while_it_is_open(self, tmp_path, refresh):
        logger = TensorBoardLogger(tmp_path)
        logger(refresh)
        assert self.read(tmp_path) == {tag: {7: value} for tag, value in (SUMMARY | PER_UNIT).items()}
        logger(replace(refresh, step=9))
        logger.close()
        assert self.read(tmp_path)["tempbalance/imbalance"] == {7: 1.5, 9: 1.5}

    def test_tensorboard_takes_a_writer_and_keeps_it_open(self, tmp_path, refresh):
        from torch.utils.tensorboard import SummaryWriter

        with SummaryWriter(tmp_path) as writer:
            logger = TensorBoardLogger(writer, per_unit=False)
            logger(refresh)
            logger.close()
            writer.add_scalar("loss", 1.0, 8)
        assert self.read(tmp_path) == {tag: {7: value} for tag, value in SUMMARY.items()} | {"loss": {8: 1.0}}

    def test_tensorboard_gets_each_refresh_of_a_balancer(self, tmp_path, make_recipe):
        net = torch.nn.Sequential(torch.nn.Linear(24, 24), torch.nn.Linear(24, 24))
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        balancer = tb.Balancer(optimizer, net, make_recipe(), on_refresh=[TensorBoardLogger(tmp_path)])
        for _ in range(3):
            net(torch.ones(2, 24)).sum().backward()
            optimizer.step()
        written = self.read(tmp_path)
        assert list(written["tempbalance/imbalance"]) == [0, 2]
        assert [written[f"tempbalance_alpha/{unit.name}"][2] for unit in balancer.units] == pytest.approx(
            [unit.alpha for unit in balancer.units]
        )

    def test_a_tensorboard_writer_of_another_type_is_refused(self):
        with pytest.raises(TypeError, match=r"expected a SummaryWriter.*got a int"):
            TensorBoardLogger(3)


class TestWandb:
    @pytest.fixture
    def wandb(self, tmp_path, monkeypatch):
        monkeypatch.setenv("WANDB_MODE", "offline")
        monkeypatch.setenv("WANDB_SILENT", "true")
        monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
        monkeypatch.chdir(tmp_path)
        return pytest.importorskip("wandb")

    @staticmethod
    def records(path: Path) -> list[Any]:
        """Return the records of an offline run's file, a LevelDB log of protocol buffers."""
        from wandb.proto.wandb_internal_pb2 import Record

        data, place, block, whole, found = path.read_bytes(), 7, 32768, b"", []
        while place + 7 <= len(data):
            if block - place % block < 7:  # no header fits into the rest of a block
                place += block - place % block
                continue
            _, length, kind = struct.unpack_from("<IHB", data, place)
            if place + 7 + length > len(data):  # still being written
                break
            whole += data[place + 7 : place + 7 + length]
            place += 7 + length
            if kind in (1, 4):  # a full record, or the last part of one
                found.append(Record.FromString(whole))
                whole = b""
        return found

    def rows(self, folder: Path) -> list[dict[str, float]]:
        """The rows of the history, once the process that writes the file has closed it, a moment after the run ends."""
        (path,) = folder.glob("wandb/offline-run-*/*.wandb")
        deadline = time.monotonic() + 20
        while not ((found := self.records(path)) and found[-1].WhichOneof("record_type") == "exit"):
            assert time.monotonic() < deadline, "the file was never closed"
            time.sleep(0.05)
        histories = [record.history.item for record in found if record.WhichOneof("record_type") == "history"]
        rows = [{"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in items} for items in histories]
        return [{key: value for key, value in row.items() if not key.startswith("_")} for row in rows]

    def test_wandb_adds_a_refresh_to_the_row_of_the_training_loop(self, wandb, tmp_path, refresh):
        with wandb.init(project="test", dir=tmp_path) as run:
            logger = WandbLogger(run, per_unit=False)
            for step in range(2):
                logger(replace(refresh, step=step))
                run.log({"loss": 0.5}, step=step)
        values = SUMMARY | {"loss": 0.5}
        assert self.rows(tmp_path) == [values | {"tempbalance/step": step} for step in range(2)]

    def test_wandb_keeps_every_refresh_if_nothing_else_is_logged(self, wandb, tmp_path, refresh):
        with wandb.init(project="test", dir=tmp_path):
            logger = WandbLogger()
            for step in (0, 5, 9):
                logger(replace(refresh, step=step))
        assert self.rows(tmp_path) == [SUMMARY | PER_UNIT | {"tempbalance/step": step} for step in (0, 5, 9)]

    def test_wandb_without_an_active_run_raises_with_the_fix(self, wandb):
        with pytest.raises(RuntimeError, match=r"wandb\.init\(\)"):
            WandbLogger()
        with pytest.raises(TypeError, match="got a str"):
            WandbLogger("my-run")


class TestMLflow:
    @pytest.fixture
    def mlflow(self, tmp_path, monkeypatch):
        # Plain folders are for reading here; the skinny package has no database.
        monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        module = pytest.importorskip("mlflow")
        before = module.get_tracking_uri()
        module.set_tracking_uri((tmp_path / "runs").as_uri())
        yield module
        module.set_tracking_uri(before)

    @staticmethod
    def read(mlflow, run_id: str) -> dict[str, list[tuple[int, float]]]:
        client = mlflow.MlflowClient()
        names = client.get_run(run_id).data.metrics
        return {name: [(m.step, m.value) for m in client.get_metric_history(run_id, name)] for name in names}

    def test_mlflow_writes_to_the_active_run(self, mlflow, refresh):
        with mlflow.start_run() as run:
            logger = MLflowLogger()
        logger(refresh)  # the run it was made in, active or not
        assert self.read(mlflow, run.info.run_id) == {
            name: [(7, value)] for name, value in (SUMMARY | PER_UNIT).items()
        }

    def test_mlflow_writes_more_units_than_one_call_accepts_and_any_name(self, mlflow, refresh):
        units = [tb.balance.UnitState(name=f"layers.{i}.q[{i}]", alpha=2.0 + i, multiplier=1.0) for i in range(500)]
        with mlflow.start_run() as run:
            MLflowLogger(run.info.run_id)(replace(refresh, units=units))
        written = mlflow.MlflowClient().get_run(run.info.run_id).data.metrics
        assert len(written) == 9 + 2 * 500
        assert written["tempbalance_alpha/layers.499.q_499_"] == 501.0

    def test_mlflow_without_an_active_run_raises_with_the_fix(self, mlflow):
        with pytest.raises(RuntimeError, match=r"mlflow\.start_run\(\)"):
            MLflowLogger()
        assert mlflow.active_run() is None


@pytest.mark.parametrize(
    ("logger", "module", "extra"),
    [
        (lambda: TensorBoardLogger("folder"), "torch.utils.tensorboard", "tensorboard"),
        (WandbLogger, "wandb", "wandb"),
        (MLflowLogger, "mlflow", "mlflow"),
    ],
)
def test_a_logger_without_its_package_names_the_extra(monkeypatch, logger, module, extra):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(tb.errors.MissingExtraError, match=rf"pip install 'tempbalance\[{extra}\]'"):
        logger()
