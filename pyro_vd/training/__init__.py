"""Training: the weight of the KL over a run, and checkpoints."""

from pyro_vd.common.schedules import constant as constant
from pyro_vd.common.schedules import cyclic as cyclic
from pyro_vd.common.schedules import linear_warm_up as linear_warm_up
from pyro_vd.training.checkpoints import Checkpoint as Checkpoint
from pyro_vd.training.checkpoints import load_checkpoint as load_checkpoint
from pyro_vd.training.checkpoints import save_checkpoint as save_checkpoint
