"""What a fitted model predicts: draws from the posterior predictive distribution, and the distribution itself."""

from pyro_vd.numpyro.predict.distribution import Predictive as Predictive
from pyro_vd.numpyro.predict.draws import posterior_predictive as posterior_predictive
from pyro_vd.numpyro.predict.inference_data import to_arviz as to_arviz
from pyro_vd.numpyro.predict.likelihoods import predictive_distribution as predictive_distribution
