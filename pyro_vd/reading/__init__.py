"""What a net does with its parameters, read in its source."""

from pyro_vd.reading.net import Reading as Reading
from pyro_vd.reading.values import is_of_torch as is_of_torch
from pyro_vd.reading.values import kind_of as kind_of
