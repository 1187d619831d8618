"""The table operation -> rule: which linear operation a call is, and which argument is its weight."""

from pyro_vd.operations import attention as attention
from pyro_vd.operations import contractions as contractions
from pyro_vd.operations import convolutions as convolutions
from pyro_vd.operations import embeddings as embeddings
from pyro_vd.operations import layers as layers
from pyro_vd.operations import products as products
from pyro_vd.operations import recurrent as recurrent
from pyro_vd.operations.table import TABLE as TABLE
from pyro_vd.operations.table import Entry as Entry
from pyro_vd.operations.table import operations_table as operations_table
from pyro_vd.operations.table import register_rule as register_rule
