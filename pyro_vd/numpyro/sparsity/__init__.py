"""What follows training: which weights stay, the report of sparsity, and the pruned net."""

from pyro_vd.common.deployment import Deployment as Deployment
from pyro_vd.numpyro.sparsity.bits import weight_bits as weight_bits
from pyro_vd.numpyro.sparsity.deploy import deploy as deploy
from pyro_vd.numpyro.sparsity.fine_tuning import keep_zeros as keep_zeros
from pyro_vd.numpyro.sparsity.masks import keep_mask as keep_mask
from pyro_vd.numpyro.sparsity.masks import keep_masks as keep_masks
from pyro_vd.numpyro.sparsity.masks import weight_posteriors as weight_posteriors
from pyro_vd.numpyro.sparsity.prune import prune as prune
from pyro_vd.numpyro.sparsity.report import sparsity_report as sparsity_report
from pyro_vd.numpyro.sparsity.threshold import threshold_curve as threshold_curve
