"""A run whose every view can be worked out by hand."""

import numpy as np

from trackmetrics.record import EpochRecord, FinalInference, FinalResults, Hyperparameters, Metadata, RunRecord

LOG_PROBS = np.log(np.array([[0.75, 0.125, 0.125], [0.25, 0.5, 0.25], [0.125, 0.125, 0.75], [0.75, 0.2, 0.05]]))
ATTENTION = np.stack([np.tril(np.ones((4, 4))) / np.arange(1, 5)[:, None], np.eye(4)]).astype(np.float32)


def a_run(*, task="counting", learning_rate=0.1, losses=(0.8, 0.4, 0.2), state="completed", **status):
    """A run of as many epochs as it is given losses; its accuracies rise by an eighth."""
    epochs = tuple(
        EpochRecord(number, loss, number / 8, number / 8 + 0.125, 2.0 / number, 1.5 * number, {"perplexity": 2.0**loss})
        for number, loss in enumerate(losses, 1)
    )
    norms = [{"epoch": epoch.epoch, "min": 0.5, "median": 1.0, "max": 3.0} for epoch in epochs]
    ended = state == "completed"
    return RunRecord(
        Metadata(
            task,
            "2026-01-30T22:08:22Z",
            "cpu",
            Hyperparameters(
                {"class": "Transformer", "layers": 2}, {"learning_rate": learning_rate, "adam": {"eps": 0}}
            ),
        ),
        epochs,
        FinalResults(0.5, 0.625, epochs[-1].elapsed_seconds) if ended else None,
        FinalInference("abca", LOG_PROBS, ATTENTION) if ended else None,
        {
            "status": {"state": state, **status},
            "environment": {"device_name": "Abacus", "torch": "2.13.0", "python": "3.11.7"},
            "gradient_norm": {"meaning": "the norm", "steps": 30, "non_finite_steps": 2, "epochs": norms},
            "warnings": ["seed: nothing seeded torch"],
        },
    )
