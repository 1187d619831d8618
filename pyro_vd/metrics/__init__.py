"""Judging a prediction: scores, calibration, intervals, and what uncertainty is good for.

All functions take a ``Predictive`` of either backend, or probabilities as an array of any library; they return floats
and tensors of PyTorch.
"""

from pyro_vd.metrics.calibration import conformal_sets as conformal_sets
from pyro_vd.metrics.calibration import conformal_threshold as conformal_threshold
from pyro_vd.metrics.calibration import fit_temperature as fit_temperature
from pyro_vd.metrics.intervals import interval_coverage as interval_coverage
from pyro_vd.metrics.intervals import interval_width as interval_width
from pyro_vd.metrics.intervals import pit as pit
from pyro_vd.metrics.scores import accuracy as accuracy
from pyro_vd.metrics.scores import auroc as auroc
from pyro_vd.metrics.scores import brier_score as brier_score
from pyro_vd.metrics.scores import calibration_error as calibration_error
from pyro_vd.metrics.scores import nll as nll
from pyro_vd.metrics.selection import RiskCoverage as RiskCoverage
from pyro_vd.metrics.selection import ood_auroc as ood_auroc
from pyro_vd.metrics.selection import ood_fpr as ood_fpr
from pyro_vd.metrics.selection import risk_coverage as risk_coverage
