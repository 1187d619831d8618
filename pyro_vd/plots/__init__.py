"""Pictures of predictions, by matplotlib: each takes the axes to draw in, and returns them."""

from pyro_vd.plots.classes import entropy_histogram as entropy_histogram
from pyro_vd.plots.classes import reliability_diagram as reliability_diagram
from pyro_vd.plots.classes import risk_coverage_curve as risk_coverage_curve
from pyro_vd.plots.regression import regression_band as regression_band
