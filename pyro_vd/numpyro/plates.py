"""data_plate: a minibatch, which scales its log likelihood."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpyro
from numpyro import handlers

from pyro_vd.common.plates import check_data_plate
from pyro_vd.numpyro._numpyro import is_prediction


def data_plate(dataset_size: int, batch_size: int, name: str = "data", dim: int | None = None) -> numpyro.plate:
    """A plate over a minibatch that scales its log likelihood by ``dataset_size / batch_size``.

    As ``numpyro.plate(name, dataset_size, subsample_size=batch_size)``, without the permutation of all
    indices that the latter draws each time: the loader has chosen the batch already.

    Args:
        dataset_size: number of examples in the data set.
        batch_size: number of examples in this batch.
        name: name of the plate.
        dim: batch dimension of the plate, negative; the rightmost free one if not given.

    Raises:
        ValueError: unless ``1 <= batch_size <= dataset_size``; a ``dim`` that is not negative.

    Example:
        >>> with data_plate(60000, 100) as index:
        ...     len(index)
        100

    See also:
        :class:`pyro_vd.numpyro.BayesianModule`, :class:`pyro_vd.numpyro.TraceVD_ELBO`.
    """
    dataset_size, batch_size = check_data_plate(dataset_size, batch_size, name, dim, is_prediction())
    dataset_size = max(dataset_size, batch_size)  # in a prediction, which may have more examples
    with handlers.substitute(data={name: jnp.arange(batch_size)}):
        return _DataPlate(name, dataset_size, subsample_size=batch_size, dim=dim)


class _DataPlate(numpyro.plate):
    """Marks its sites: the model predicts those that are not observed, and no automatic guide covers them."""

    def process_message(self, msg: Any) -> None:
        super().process_message(msg)
        if msg["type"] == "sample":
            msg["infer"] = {**msg["infer"], "in_data_plate": True}
