"""What follows training: which weights stay, the report of sparsity, and the pruned net."""

from pyro_vd.common.bits import BitsReport as BitsReport
from pyro_vd.common.deployment import Deployment as Deployment
from pyro_vd.common.reports import SparsityReport as SparsityReport
from pyro_vd.common.reports import SparsityRow as SparsityRow
from pyro_vd.sparsity.bits import weight_bits as weight_bits
from pyro_vd.sparsity.csr import CSRLinear as CSRLinear
from pyro_vd.sparsity.csr import to_csr as to_csr
from pyro_vd.sparsity.deploy import deploy as deploy
from pyro_vd.sparsity.files import load_sparse as load_sparse
from pyro_vd.sparsity.files import save_sparse as save_sparse
from pyro_vd.sparsity.inputs import IndexedLinear as IndexedLinear
from pyro_vd.sparsity.inputs import index_inputs as index_inputs
from pyro_vd.sparsity.masks import keep_mask as keep_mask
from pyro_vd.sparsity.masks import keep_masks as keep_masks
from pyro_vd.sparsity.masks import weight_posteriors as weight_posteriors
from pyro_vd.sparsity.prune import prune as prune
from pyro_vd.sparsity.prune import remove_masks as remove_masks
from pyro_vd.sparsity.report import sparsity_report as sparsity_report
from pyro_vd.sparsity.shrink import shrink as shrink
from pyro_vd.sparsity.threshold import threshold_curve as threshold_curve
