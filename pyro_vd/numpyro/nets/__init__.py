"""One interface to the nets of flax.linen, flax.nnx and equinox."""

from pyro_vd.numpyro.nets.adapt import adapt as adapt
from pyro_vd.numpyro.nets.net import Net as Net
from pyro_vd.numpyro.nets.net import is_layer as is_layer
