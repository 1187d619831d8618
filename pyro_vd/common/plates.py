"""The arguments of data_plate, checked once for both sides."""

from __future__ import annotations

from typing import Any

from pyro_vd.common.options import check_count, shown


def check_data_plate(dataset_size: Any, batch_size: Any, name: Any, dim: Any, is_prediction: bool) -> tuple[int, int]:
    """The two sizes as ints; in a prediction a batch may be larger than the training data.

    Raises:
        ValueError: sizes unless ``1 <= batch_size <= dataset_size``; a ``dim`` that is not negative.
        TypeError: a name that is not a text.
    """
    dataset_size = check_count("dataset_size", dataset_size, owner="data_plate")
    batch_size = check_count("batch_size", batch_size, owner="data_plate")
    if dim is not None and check_count("dim", dim, owner="data_plate") >= 0:
        raise ValueError(f"data_plate: expected dim to be negative, counted from the right, got {dim}; write dim=-1")
    if not isinstance(name, str):
        raise TypeError(f"data_plate: expected name to be text, got {shown(name)}; write name='data'")
    if batch_size < 1 or (batch_size > dataset_size and not is_prediction):
        raise ValueError(
            f"data_plate: expected 1 <= batch_size <= dataset_size, got batch_size={batch_size} and "
            f"dataset_size={dataset_size}; dataset_size is the number of training examples (posterior_predictive "
            "and predictive_distribution take any number)"
        )
    return dataset_size, batch_size
