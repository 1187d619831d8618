"""One pass: mean and variance of every activation, carried through an unmodified net."""

from pyro_vd.numpyro.predict.moments import combinations as combinations
from pyro_vd.numpyro.predict.moments import elementwise as elementwise
from pyro_vd.numpyro.predict.moments import functions as functions
from pyro_vd.numpyro.predict.moments.gaussian import GaussianArray as GaussianArray
from pyro_vd.numpyro.predict.moments.gaussian import Pass as Pass
from pyro_vd.numpyro.predict.moments.gaussian import drawn as drawn
