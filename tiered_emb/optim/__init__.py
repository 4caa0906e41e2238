"""Optimizers of rows; see `base` for what they share. One optimizer, one file."""

from tiered_emb.optim.adagrad import Adagrad
from tiered_emb.optim.adam import Adam
from tiered_emb.optim.base import RowOptimizer
from tiered_emb.optim.rowwise_adagrad import RowwiseAdagrad
from tiered_emb.optim.sgd import SGD

__all__ = ["SGD", "Adagrad", "Adam", "RowOptimizer", "RowwiseAdagrad"]
