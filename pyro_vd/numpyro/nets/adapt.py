"""Which library a net belongs to."""

from __future__ import annotations

import sys
from typing import Any

from pyro_vd.numpyro.arguments import kind_of
from pyro_vd.numpyro.nets.equinox import EquinoxNet
from pyro_vd.numpyro.nets.linen import LinenNet
from pyro_vd.numpyro.nets.net import Net
from pyro_vd.numpyro.nets.nnx import NnxNet


def adapt(net: Any, owner: str = "BayesianModule") -> Net:
    """The net as a :class:`Net`; ``owner`` is who asks, for an error.

    Raises:
        TypeError: not a net of flax.linen, flax.nnx or equinox.
        ValueError: an equinox net with a state that does not come with it.
    """
    # A net cannot be of a library that was not imported.
    if "flax" in sys.modules:
        from flax import linen, nnx

        if isinstance(net, linen.Module):
            return LinenNet(net)
        if isinstance(net, nnx.Module):
            return NnxNet(net)
    if "equinox" in sys.modules:
        import equinox

        module, state = net if isinstance(net, tuple) and len(net) == 2 else (net, None)
        if isinstance(module, equinox.Module):
            return EquinoxNet(module, state)
    raise TypeError(
        f"{owner}: expected net to be a flax.linen, flax.nnx or equinox module (of equinox also the pair "
        f"of eqx.nn.make_with_state), got {kind_of(net)}; for a net of PyTorch use pyro_vd.{owner}, and write "
        "one of haiku in flax or equinox"
    )
