"""The toy training on one of several processes, under a trainer; torchrun starts it."""

import json
import os
import sys
import warnings

import torch
from torch.utils.data import DataLoader, DistributedSampler
from trainers import Kept, by_accelerate, by_lightning, by_loop, by_trainer, lightning_library, loaders, sets

from trackmetrics import Tracker
from trackmetrics.record import METRIC_KEYS

COUNT = 48  # six global batches, none short: a trainer fills one that is
ranks = int(os.environ.get("WORLD_SIZE", 1))
kept = Kept()
data = {"count": COUNT, "batch_size": 8 // ranks}


def main(trainer):
    if trainer == "loop":
        with Tracker("toy", sinks=[kept]) as run:
            by_loop(run, **data)
    elif trainer == "lightning":
        from trackmetrics.integrations.lightning import MetricsFileCallback

        library = lightning_library("lightning.pytorch")
        callback = MetricsFileCallback("toy", sinks=[kept])
        train, dev = sets(COUNT)
        sampler = DistributedSampler(train, ranks, int(os.environ["RANK"]), shuffle=False)  # Lightning's own shuffles
        own = DataLoader(train, batch_size=8 // ranks, sampler=sampler), DataLoader(dev, batch_size=8)
        by_lightning(library, callback, data=own, strategy="ddp", devices=ranks, use_distributed_sampler=False)
    elif trainer == "transformers":
        from trackmetrics.integrations.transformers import MetricsFileCallback

        by_trainer(MetricsFileCallback("toy", sinks=[kept]), ddp_backend="gloo", **data)
    else:
        from trackmetrics.integrations.accelerate import MetricsFileTracker

        with Tracker("toy", sinks=[kept]):
            by_accelerate(MetricsFileTracker(), data=loaders(**data))


torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)  # sums in another order grow apart
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    main(sys.argv[1])
found = {"said": [str(item.message) for item in caught if "Trackmetrics" in item.category.__name__]}
for record in kept.records:  # sinks are told on rank 0
    found |= {
        "epochs": [[getattr(epoch, key) for key in METRIC_KEYS] for epoch in record.epochs],
        "final": [record.final_results.train_accuracy, record.final_results.dev_accuracy],
        "example": record.final_inference and record.final_inference.example_input,
    }
with open(f"said{os.environ.get('RANK', 0)}.json", "w") as file:
    json.dump(found, file)
