"""A Hypothesis strategy: run records as a training could give them, with whatever a user logs and sets."""

import dataclasses

import numpy as np
from any_record import OWN_KEYS, any_floats, dtypes, keys, plain_dicts, plain_values, texts, texts_with_surrogates
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from trackmetrics.record import EpochRecord, FinalInference, FinalResults, Hyperparameters, Metadata, RunRecord

own_metrics = st.dictionaries(keys.filter(lambda key: key not in OWN_KEYS), plain_values, max_size=3)
shares = st.one_of(st.none(), st.just(float("nan")), st.floats(0, 1))
norms = st.one_of(st.none(), st.just(float("inf")), st.floats(0, 1e9))
losses = st.one_of(st.none(), any_floats)
seconds = st.floats(0, 1e6)
dates = st.datetimes().map(lambda date: date.strftime("%Y-%m-%dT%H:%M:%SZ").zfill(20))


@st.composite
def log_probs(draw):
    """Rows of log-probabilities, some of them minus infinity, of any width; or none, or some that diverged."""
    shape = draw(st_numpy.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=4))
    scores = draw(st_numpy.arrays(np.float64, shape, elements=st.floats(-30, 30)))
    scores[:, 1:][draw(st_numpy.arrays(np.bool_, scores[:, 1:].shape))] = -np.inf
    rows = scores - np.log(np.exp(scores).sum(-1, keepdims=True))
    rows[draw(st_numpy.arrays(np.bool_, shape[:1]))] += draw(st.sampled_from([0.0, np.nan]))
    return rows.astype(draw(dtypes))


@st.composite
def attention(draw):
    """Maps as a stack, and what the extensions say of them; the numbers are any."""
    layers, heads, length, keys = (draw(st.integers(1, 3)) for _ in range(4))
    dtype = draw(dtypes)
    per_head = draw(st_numpy.arrays(dtype, (layers, heads, length, length)))
    about = {"source": "observed", "check": draw(st.one_of(st.none(), st.floats(0)))}
    maps = [
        {"name": f"{layer}", "kind": "self", "shape": [1, heads, length, length], **about, "layer": layer}
        for layer in range(layers)
    ]
    windows = draw(st.integers(1, 3))
    shape = (windows,) * (windows > 1) + (heads,) * draw(st.booleans()) + (length, keys)
    apart = {"name": "apart", "kind": "cross", "shape": [windows, heads, length, keys], **about}
    maps.insert(draw(st.integers(0, layers)), {**apart, "weights": draw(st_numpy.arrays(dtype, shape))})
    kept = {"heads": per_head} if draw(st.booleans()) else {}
    return per_head[:, 0], {"maps": maps, **kept}


@st.composite
def records(draw):
    """A run, from its beginning to its end or to where it broke off."""
    times = sorted(draw(st.lists(seconds, max_size=4)))
    epochs = tuple(
        EpochRecord(
            number,
            draw(losses),
            draw(shares),
            draw(shares),
            draw(norms),
            elapsed_seconds=time,
            metrics=draw(own_metrics),
        )
        for number, time in enumerate(times, start=1)
    )
    state = draw(st.sampled_from(["running", "completed", "failed", "interrupted"]))
    error = {"error": {"type": "ValueError", "message": draw(texts)}} if state in ("failed", "interrupted") else {}
    extensions = {"status": {"state": state, **error, "process": 1, "host": draw(texts)}}
    extensions["gradient_norm"] = {"steps": None, "epochs": [{"epoch": epoch.epoch} for epoch in epochs]}
    record = RunRecord(
        Metadata(
            draw(st.text(min_size=1, max_size=8)), draw(dates), draw(st.one_of(st.none(), texts)),
            Hyperparameters(draw(plain_dicts), draw(plain_dicts)),
        ),
        epochs,
    )  # fmt: skip
    if state == "completed" and draw(st.booleans()):  # a fault may have cost the results
        weights, described = draw(st.one_of(attention(), st.just((np.zeros((0, 0, 0)), {}))))
        extensions["attention"] = described
        record = dataclasses.replace(
            record,
            final_results=FinalResults(draw(shares), draw(shares), times[-1] if times else draw(seconds)),
            final_inference=FinalInference(
                draw(texts_with_surrogates), draw(st.one_of(st.none(), log_probs())), weights
            ),
        )
    return dataclasses.replace(record, extensions=extensions if draw(st.booleans()) else None)
