"""Other trackers to send a run to, each with its sink, and what really arrived there in one form.

A kind is a context manager: entered, it gives an object with the `sink`, and `read()`, called after the run, gives what
arrived. What a tracker can't hold stands in the kind: `number` is what becomes of a float, `holds` what it has at all.
"""

import contextlib
import io
import json
import math
import os
import re
import shutil
import struct
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from trackmetrics.sinks import MLflow, TensorBoard, Wandb

DOCS = Path(__file__).parents[2] / "docs"


@dataclass
class Arrived:
    """What arrived: metrics as (epoch, value) in order, hyperparameters as text, images, files, the run's state."""

    metrics: dict = field(default_factory=dict)
    hyperparameters: dict = field(default_factory=dict)
    results: dict = field(default_factory=dict)
    images: dict = field(default_factory=dict)
    files: dict = field(default_factory=dict)
    state: str | None = None


def split(scalars):
    """Metrics and final results, among all scalars by name."""
    ends = {name: value for name, value in scalars.items() if name.startswith("final_results/")}
    results = {name.removeprefix("final_results/"): value[-1][1] for name, value in ends.items()}
    return {name: value for name, value in scalars.items() if name not in ends}, results


def pixels(data):
    image = pytest.importorskip("PIL.Image", reason="pillow isn't installed: it reads the images back")
    return np.asarray(image.open(io.BytesIO(data)).convert("RGB"))


class Kind:
    """One way to attach a sink."""

    library = ""
    own = True  # whether the sink opens the tracker's run itself
    holds = ("metrics", "hyperparameters", "results", "images", "files", "state")
    names = staticmethod(lambda name: name)
    number = staticmethod(float)
    text = staticmethod(str)

    def __init__(self, sink):
        self.sink = sink

    def read(self):
        raise NotImplementedError


# TensorBoard


class OwnEvents(Kind):
    library = "tensorboard"
    holds = ("metrics", "hyperparameters", "results", "images")

    @staticmethod
    def number(value):
        with np.errstate(over="ignore"):
            return float(np.float32(value))

    @staticmethod
    def text(value):
        return str(float(value) if type(value) is int else value)

    @classmethod
    @contextlib.contextmanager
    def entered(cls):
        yield cls(TensorBoard())

    def folder(self):
        (folder,) = Path("output/tensorboard/contract").iterdir()
        return folder

    def read(self):
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
        from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

        found = EventAccumulator(str(self.folder()), size_guidance={"scalars": 0, "images": 0})
        found.Reload()
        tags = found.Tags()
        metrics, results = split({tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in tags["scalars"]})
        images = {tag: pixels(found.Images(tag)[-1].encoded_image_string) for tag in tags["images"]}
        hyperparameters = {}
        if "_hparams_/session_start_info" in found.summary_metadata:
            data = HParamsPluginData()
            data.ParseFromString(found.summary_metadata["_hparams_/session_start_info"].plugin_data.content)
            for name, value in data.session_start_info.hparams.items():
                hyperparameters[name] = str(getattr(value, value.WhichOneof("kind")))
        return Arrived(metrics, hyperparameters, results, images)


class UsersWriter(OwnEvents):
    own = False

    @classmethod
    @contextlib.contextmanager
    def entered(cls):
        writer = pytest.importorskip("torch.utils.tensorboard").SummaryWriter("mine")
        kind = cls(TensorBoard(writer))
        yield kind
        assert writer.file_writer is not None  # still open
        writer.close()

    def folder(self):
        return Path("mine")


# MLflow


@contextlib.contextmanager
def a_store():
    """A local database of MLflow's in this folder; made once, for that takes seconds."""
    mlflow = pytest.importorskip("mlflow", reason="mlflow isn't installed: a local store is read back")
    uri = f"sqlite:///{Path('mlflow.db').absolute()}"
    template = Path(a_store.__dict__.setdefault("folder", Path.cwd())) / "template.db"
    if not template.exists():
        mlflow.MlflowClient(tracking_uri=f"sqlite:///{template}").create_experiment("nothing", "nowhere")
    shutil.copy(template, "mlflow.db")
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)
    try:
        yield mlflow
    finally:
        mlflow.set_tracking_uri(before)


class OwnMlflowRun(Kind):
    library = "mlflow"

    @staticmethod
    def number(value):
        return math.copysign(sys.float_info.max, value) if math.isinf(value) else float(value)

    @staticmethod
    def names(name):
        return re.sub(r'[@"]', "_", name)

    @classmethod
    @contextlib.contextmanager
    def entered(cls):
        with a_store() as mlflow:
            experiment = mlflow.create_experiment("tried", str(Path("artifacts").absolute()))
            with cls.attached(mlflow, experiment) as sink:
                kind = cls(sink)
                kind.client = mlflow.MlflowClient()
                yield kind

    @classmethod
    @contextlib.contextmanager
    def attached(cls, mlflow, experiment):
        yield MLflow(experiment="tried")

    def run(self):
        experiment = self.client.get_experiment_by_name("tried").experiment_id
        return self.client.search_runs([experiment])[0]  # the latest

    def read(self):
        run = self.run()
        identity = run.info.run_id
        histories = {name: self.client.get_metric_history(identity, name) for name in run.data.metrics}
        metrics, results = split({name: [(e.step, e.value) for e in items] for name, items in histories.items()})
        root = Path(run.info.artifact_uri.removeprefix("file://"))
        stored = {str(file.relative_to(root)): file for file in root.rglob("*") if file.is_file()}
        states = {"FINISHED": "completed", "KILLED": "interrupted", "FAILED": "failed", "RUNNING": "open"}
        return Arrived(
            metrics,
            dict(run.data.params),
            results,
            {name[:-4]: pixels(file.read_bytes()) for name, file in stored.items() if name.endswith(".png")},
            {name: file.read_bytes() for name, file in stored.items() if not name.endswith(".png")},
            states[run.info.status],
        )


class UsersMlflowRun(OwnMlflowRun):
    """The active run, begun in the training's own block."""

    own = False

    @classmethod
    @contextlib.contextmanager
    def attached(cls, mlflow, experiment):
        with mlflow.start_run(experiment_id=experiment) as active:
            yield MLflow()
            assert mlflow.active_run() is active


class NamedMlflowRun(OwnMlflowRun):
    """A run named by its id, and a client."""

    own = False

    @classmethod
    @contextlib.contextmanager
    def attached(cls, mlflow, experiment):
        client = mlflow.MlflowClient()
        yield MLflow(client.create_run(experiment).info.run_id, client=client)


# W&B


class OwnWandbRun(Kind):
    library = "wandb"

    @classmethod
    @contextlib.contextmanager
    def entered(cls):
        wandb = pytest.importorskip("wandb", reason="wandb isn't installed: an offline run is read back")
        places = {f"WANDB_{name}_DIR": str(Path(name).absolute()) for name in ("DATA", "CACHE", "CONFIG")}
        given = {"WANDB_MODE": "offline", "WANDB_DIR": os.getcwd(), "WANDB_SILENT": "true", **places}
        with pytest.MonkeyPatch.context() as patch:
            for name, value in given.items():
                patch.setenv(name, value)
            try:
                with cls.attached(wandb) as kind:
                    yield kind
            finally:
                assert wandb.run is None
                wandb.teardown()

    @classmethod
    @contextlib.contextmanager
    def attached(cls, wandb):
        yield cls(Wandb())

    def finish(self):
        """The user is done with the run."""

    def read(self):
        self.finish()
        sys.modules["wandb"].teardown()  # which waits until all is written
        folder = max(Path("wandb").glob("offline-run-*"), key=lambda path: path.stat().st_mtime_ns)
        (file,) = folder.glob("*.wandb")
        arrived, scalars, steps = Arrived(state="open"), {}, {}
        for record in records(file.read_bytes()):
            kind = record.WhichOneof("record_type")
            if kind == "metric":
                steps[record.metric.name] = record.metric.step_metric
            elif kind == "history":
                row = values(record.history.item)
                for name, value in row.items():
                    if name.endswith(".path"):
                        arrived.images[name[:-5]] = pixels((folder / "files" / value).read_bytes())
                    elif steps.get(name) == "epoch":
                        scalars.setdefault(name, []).append((row["epoch"], float(value)))
            elif kind == "config":
                arrived.hyperparameters |= {name: str(value) for name, value in values(record.config.update).items()}
            elif kind == "summary":
                ends = values(record.summary.update).items()
                scalars |= {name: [(0, value)] for name, value in ends if name.startswith("final_results/")}
            elif kind == "artifact":
                contents = record.artifact.manifest.contents
                arrived.files |= {entry.path: Path(entry.local_path).read_bytes() for entry in contents}
            elif kind == "exit":
                states = {0: "completed", 1: "failed", 255: "interrupted"}
                arrived.state = states[record.exit.exit_code]
        arrived.metrics, arrived.results = split(scalars)
        return arrived


class UsersWandbRun(OwnWandbRun):
    own = False

    @classmethod
    @contextlib.contextmanager
    def attached(cls, wandb):
        run = wandb.init(settings=wandb.Settings(console="off"))
        kind = cls(Wandb())  # which finds the active one
        kind.finish = run.finish
        try:
            yield kind
        finally:
            run.finish()


class GivenWandbRun(OwnWandbRun):
    own = False

    @classmethod
    @contextlib.contextmanager
    def attached(cls, wandb):
        run = wandb.init(settings=wandb.Settings(console="off", reinit="create_new"))
        kind = cls(Wandb(run))
        kind.finish = run.finish
        try:
            yield kind
        finally:
            run.finish()


def values(items):
    return {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}


def records(data):
    """The records of a `.wandb` file: a log of blocks of 32 KiB, whose records are whole, first, middle or last."""
    from wandb.proto.wandb_internal_pb2 import Record

    assert data[:4] == b":W&B"
    at, joined = 7, b""
    while at < len(data):
        left = 32768 - at % 32768
        length, part = struct.unpack("<HB", data[at + 4 : at + 7]) if left >= 7 else (0, 0)
        if not part:  # the rest of the block is empty
            at += left
            continue
        joined += data[at + 7 : at + 7 + length]
        at += 7 + length
        if part in (1, 4):
            record = Record()
            record.ParseFromString(joined)
            joined = b""
            yield record


# One that isn't ours


class ThirdParty(Kind):
    """The sink of docs/how-to/sinks.md, as it stands there."""

    holds = ("metrics", "state")

    @classmethod
    @contextlib.contextmanager
    def entered(cls):
        text = (DOCS / "how-to" / "sinks.md").read_text(encoding="utf-8")
        (code,) = [block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "class Lines" in block]
        names = {}
        exec(code, names)
        yield cls(names["Lines"]())

    def read(self):
        lines = Path("output/contract_training_metrics.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
        metrics = {}
        for row in rows:
            for name, value in row.items():
                if "epoch" in row and name != "epoch" and type(value) in (int, float):
                    metrics.setdefault(name, []).append((row["epoch"], float(value)))
        return Arrived(metrics, state=rows[-1].get("state", "open"))


KINDS = {
    "TensorBoard": OwnEvents,
    "TensorBoard, a writer of the user's": UsersWriter,
    "MLflow": OwnMlflowRun,
    "MLflow, the active run": UsersMlflowRun,
    "MLflow, a run by its id": NamedMlflowRun,
    "W&B": OwnWandbRun,
    "W&B, the active run": UsersWandbRun,
    "W&B, a run that is given": GivenWandbRun,
    "a third party's": ThirdParty,
}
