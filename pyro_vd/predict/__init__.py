"""What a fitted model predicts: draws from the posterior predictive distribution."""

from pyro_vd.predict.draws import posterior_predictive as posterior_predictive
