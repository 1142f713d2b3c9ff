"""One toy training, as a plain loop and as each trainer does it: two micro-batches a step, its gradient clipped.

A function that trains takes what to track it with, and gives the model; without it nothing of ours is in reach.
"""

import contextlib
import io
import math
import warnings

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from trackmetrics import tracker

EPOCHS, CLIP, RATE = 3, 0.5, 0.3


class Sequences(Dataset):
    """Sequences of five numbers, and whether their sum is above zero, as a mapping."""

    def __init__(self, count, seed):
        self.inputs = torch.randn(count, 5, 4, generator=torch.Generator().manual_seed(seed))
        self.labels = (self.inputs.sum((1, 2)) > 0).long()

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return {"inputs": self.inputs[index], "labels": self.labels[index]}


class Net(nn.Module):
    """A small Transformer that gives its loss, too, where it is given labels."""

    def __init__(self, dropout=0.0):
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(4, 2, dim_feedforward=8, dropout=dropout, batch_first=True)
        self.head = nn.Linear(4, 2)
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))

    def forward(self, inputs, labels=None):
        logits = self.head(self.encoder(inputs).mean(1))
        if labels is None:
            return {"logits": logits}
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def sets(count=46):
    """The training set, whose last batch is short, and the dev set."""
    return Sequences(count, 1), Sequences(61, 2)


def loaders(shuffle=False, count=46, batch_size=8):
    """Six training batches, eight dev batches."""
    train, dev = sets(count)
    return DataLoader(train, batch_size=batch_size, shuffle=shuffle), DataLoader(dev, batch_size=batch_size)


def optimizer_of(model):
    return torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9)


class Kept:
    """A sink that keeps the record as it is in memory, of each run that it is told of."""

    def __init__(self):
        self.records = []

    def run_began(self, record, path):
        pass

    def epoch_ended(self, record, path):
        pass

    def run_ended(self, record, path):
        self.records.append(record)

    @property
    def record(self):
        (record,) = self.records
        return record


def by_loop(tracker=None, net=None, shuffle=False, epochs=EPOCHS, notes=None, **data):
    """The plain loop; `notes` gets each epoch's loss, accuracy and norm, worked out beside it."""
    net = net or Net()
    optimizer = optimizer_of(net)
    train, dev = loaders(shuffle, **data)
    for _ in range(epochs):
        with tracker.epoch() if tracker else contextlib.nullcontext():
            net.train()
            norms, losses, right, seen = [], [], 0, 0
            for number, batch in enumerate(train, 1):
                output = net(**batch)
                (output["loss"] / 2).backward()
                losses.append(output["loss"].item() * len(batch["labels"]))
                right += (output["logits"].argmax(1) == batch["labels"]).sum().item()
                seen += len(batch["labels"])
                if number % 2 == 0:
                    norms.append(nn.utils.clip_grad_norm_(net.parameters(), CLIP).item())
                    optimizer.step()
                    optimizer.zero_grad()
        if notes is not None:
            notes.append((math.fsum(losses) / seen, right / seen, share_right(net, dev), math.fsum(norms) / len(norms)))
    return net


def share_right(net, loader):
    """The share of a set predicted right, by hand."""
    net.eval()
    with torch.no_grad():
        right = [net(batch["inputs"])["logits"].argmax(1) == batch["labels"] for batch in loader]
    net.train()
    return torch.cat(right).double().mean().item()


def lightning_library(name):
    """The library, or a skip."""
    return pytest.importorskip(name, reason=f"{name} isn't installed")


def lightning_module(library, net=None, **methods):
    """A module that trains `net` and evaluates it; `methods` are further ones of its class."""

    class Module(library.LightningModule):
        def __init__(self, net, width=4):
            super().__init__()
            self.save_hyperparameters(ignore="net")
            self.net = net

        def training_step(self, batch, index):
            return self.net(**batch)["loss"]

        def validation_step(self, batch, index, dataloader_idx=0):
            self.log("val_loss", self.net(**batch)["loss"])

        def configure_optimizers(self):
            return optimizer_of(self)

    return type("Own", (Module,), methods)(net or Net())


def lightning_trainer(library, callbacks=(), epochs=EPOCHS, **settings):
    """A trainer that writes nothing."""
    plain = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "accumulate_grad_batches": 2,
        "gradient_clip_val": CLIP,
        "max_epochs": epochs,
    }
    return library.Trainer(callbacks=list(callbacks), **{**plain, **settings})


def by_lightning(library, callback=None, net=None, data=(), shuffle=False, **settings):
    """Under Lightning."""
    net = net or Net()
    trainer = lightning_trainer(library, [callback] if callback else [], **settings)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"(lightning|pytorch_lightning)\.")
        trainer.fit(lightning_module(library, net), *(data or loaders(shuffle)))
    return net


def trainer_of(callbacks=(), net=None, shuffle=False, folder="trainer", count=46, batch_size=8, **settings):
    """A Hugging Face Trainer of the same training."""
    transformers = pytest.importorskip("transformers", reason="transformers isn't installed")
    pytest.importorskip("accelerate", reason="the Trainer needs accelerate")
    net = net or Net()
    train, dev = sets(count)

    class InOrder(transformers.Trainer):
        def get_train_dataloader(self):
            return self.accelerator.prepare(DataLoader(train, batch_size=batch_size, shuffle=shuffle))

    plain = {
        "num_train_epochs": EPOCHS,
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 2,
        "max_grad_norm": CLIP,
        "lr_scheduler_type": "constant",
        "eval_strategy": "epoch",
        "logging_strategy": "epoch",
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
    }
    arguments = transformers.TrainingArguments(folder, **{**plain, **settings})
    return InOrder(
        net,
        arguments,
        train_dataset=train,
        eval_dataset=dev,
        optimizers=(optimizer_of(net), None),
        callbacks=list(callbacks),
        compute_metrics=lambda found: {"right": float((found.predictions.argmax(1) == found.label_ids).mean())},
    )


def by_trainer(callback=None, **settings):
    """Under the Trainer."""
    trainer = trainer_of([callback] if callback else [], **settings)
    with contextlib.redirect_stdout(io.StringIO()):
        trainer.train()
    return trainer.model


def by_accelerate(own=None, net=None, data=(), shuffle=False, epochs=EPOCHS, log=None, **settings):
    """Under Accelerate; `log(accelerator, epoch, loss)` is called in each epoch."""
    accelerate = pytest.importorskip("accelerate", reason="accelerate isn't installed")
    accelerator = accelerate.Accelerator(cpu=True, log_with=own, **{"gradient_accumulation_steps": 2, **settings})
    accelerator.init_trackers("toy", config={"width": 4})
    run = tracker if own else None
    net = net or Net()
    optimizer = optimizer_of(net)
    train, dev = data or loaders(shuffle)
    net, optimizer, train, dev = accelerator.prepare(net, optimizer, train, dev)
    for number in range(epochs):
        with run.epoch() if run else contextlib.nullcontext():
            net.train()
            for batch in train:
                with accelerator.accumulate(net):
                    loss = net(**batch)["loss"]
                    accelerator.backward(loss)
                    if accelerator.sync_gradients:
                        accelerator.clip_grad_norm_(net.parameters(), CLIP)
                    optimizer.step()
                    optimizer.zero_grad()
            if log is not None:
                log(accelerator, number, loss)
    accelerator.end_training()
    return accelerator.unwrap_model(net)
