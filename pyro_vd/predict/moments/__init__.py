"""One pass: mean and variance of every activation, carried through an unmodified net."""

from pyro_vd.predict.moments import combinations as combinations
from pyro_vd.predict.moments import elementwise as elementwise
from pyro_vd.predict.moments import layers as layers
from pyro_vd.predict.moments.gaussian import GaussianTensor as GaussianTensor
from pyro_vd.predict.moments.weights import drawn as drawn
from pyro_vd.predict.moments.weights import gaussian_weights as gaussian_weights
