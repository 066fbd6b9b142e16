"""Watchers for training loops of other libraries, one module a library: import the one that you have.

from kinsight.callbacks.lightning import SimilarityCallback
from kinsight.callbacks.transformers import SimilarityCallback
"""
