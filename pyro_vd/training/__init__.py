"""What a run of training needs besides its steps: the weight of the KL over the run, and checkpoints."""

from pyro_vd.common.schedules import constant as constant
from pyro_vd.common.schedules import cyclic as cyclic
from pyro_vd.common.schedules import linear_warm_up as linear_warm_up
