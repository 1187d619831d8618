"""Recurrent nets: one coherent draw of the weights for a whole sequence, as the same weights act at every step.

Noise of its own at every step would be another model: one whose weights change along the sequence (Fortunato et al.
2017, arXiv:1704.02798, and Gal and Ghahramani 2016, arXiv:1512.05287, hold them fixed). No warning is given: nothing is
lost but the lower gradient variance of local sampling.
"""

from __future__ import annotations

import torch

from pyro_vd.operations.table import coherent

_DROPS = "nothing: one draw for all steps and all examples"

coherent(torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu, weight=("params",), drops=_DROPS)
coherent(
    *(torch.lstm_cell, torch.gru_cell, torch.rnn_tanh_cell, torch.rnn_relu_cell),
    weight=("w_ih", "w_hh", "b_ih", "b_hh"),
    drops=_DROPS,
)
