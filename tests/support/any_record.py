"""Hypothesis strategies: any run record that a training could give, and some that none ever would."""

import string

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from trackmetrics.record import EpochRecord, FinalInference, FinalResults, Hyperparameters, Metadata, RunRecord

OWN_KEYS = ("epoch", "train_loss", "train_accuracy", "dev_accuracy", "gradient_norm", "elapsed_seconds")

texts = st.text(max_size=12)
texts_with_surrogates = st.text(st.characters(exclude_categories=()), max_size=12)
keys = st.one_of(texts, st.text("/~01ab", max_size=5), st.sampled_from(["~", "/", "~1", "~01", "", "0", "-1"]))
any_floats = st.floats()
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(-(10**308) + 1, 10**308 - 1), any_floats, texts
)
plain_values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(keys, inner, max_size=4)),
    max_leaves=8,
)
plain_dicts = st.dictionaries(keys, plain_values, max_size=4)
dtypes = st.sampled_from([np.float16, np.float32, np.float64])


def arrays(dimensions):
    """Arrays of any numbers, each side up to 4 long, 0 included."""
    shapes = st_numpy.array_shapes(min_dims=dimensions, max_dims=dimensions, min_side=0, max_side=4)
    return dtypes.flatmap(lambda dtype: st_numpy.arrays(dtype, shapes))


metric_values = st.one_of(st.none(), any_floats, st.floats(-1e4, 1e4))
metrics = st.dictionaries(keys.filter(lambda key: key not in OWN_KEYS), plain_values, max_size=3)
epochs = st.builds(
    EpochRecord, st.integers(1, 10**6), *[metric_values] * 4, elapsed_seconds=any_floats, metrics=metrics
)
records = st.builds(
    RunRecord,
    metadata=st.builds(
        Metadata,
        task=st.text(string.ascii_letters + " é中", min_size=1, max_size=8),
        timestamp=texts,
        device=st.one_of(st.none(), texts),
        hyperparameters=st.builds(Hyperparameters, plain_dicts, plain_dicts),
    ),
    epochs=st.lists(epochs, max_size=3).map(tuple),
    final_results=st.one_of(st.none(), st.builds(FinalResults, metric_values, metric_values, any_floats)),
    final_inference=st.one_of(
        st.none(), st.builds(FinalInference, texts_with_surrogates, st.one_of(st.none(), arrays(2)), arrays(3))
    ),
    extensions=plain_dicts.map(lambda said: {f"x-{key}": value for key, value in said.items()}),
)

json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-5, 5), st.floats(-5, 5), texts),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(keys, inner, max_size=3)),
    max_leaves=8,
)
"""What may stand in a JSON file where something else should."""
