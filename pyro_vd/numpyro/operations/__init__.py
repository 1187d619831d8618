"""The table operation -> rule: which linear operation a call of a JAX primitive is, and which operand is its weight."""

from pyro_vd.numpyro.operations import linear as linear
from pyro_vd.numpyro.operations.table import TABLE as TABLE
from pyro_vd.numpyro.operations.table import Entry as Entry
from pyro_vd.numpyro.operations.table import operations_table as operations_table
from pyro_vd.numpyro.operations.table import register_rule as register_rule
