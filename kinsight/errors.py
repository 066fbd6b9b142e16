"""Every error and warning kinsight raises.

    KinsightError
    ├── InputError (ValueError)              what was passed in cannot be used
    │   ├── EmptyDataError                   no samples
    │   ├── ShapeError                       shapes or lengths that do not fit each other
    │   ├── SampleTypeError (TypeError)      a kind of input or data set that is not understood
    │   ├── UnknownNameError (LookupError)   a name that is not among the known ones
    │   ├── SourceError                      a model or data string that cannot be resolved
    │   ├── TargetError                      targets missing, or of the wrong kind
    │   ├── OutputCountError                 too many outputs to differentiate each of them
    │   └── ChangedDataError                 data that is not what an index was built from
    ├── EngineError (RuntimeError)           Ray is not there, or cannot be sent the work
    ├── NonFiniteError (ArithmeticError)     nan or inf in outputs or gradients, named by sample
    ├── StoreError (OSError)                 an index on disk cannot be used as asked
    │   ├── NoIndexError (FileNotFoundError) there is no index
    │   ├── IndexExistsError (FileExistsError)  there is one already, or something else
    │   ├── DamagedIndexError                its bytes are not those that were committed
    │   ├── IncompleteIndexError             it is half built
    │   ├── IndexFormatError                 it is of a format that is not understood
    │   ├── BusyIndexError                   another process writes it
    │   └── IndexWriteError                  a full or read-only disk
    └── ModelError (RuntimeError)            the model itself stands in the way
        ├── WrongModelError                  an index was built with other weights, or another output
        ├── ModelCallError                   the model raised while it was run on a batch
        ├── NoParametersError                nothing to differentiate with respect to
        ├── IndependentOutputError           the output depends on none of the parameters
        ├── MixedSamplesError                one sample's output depends on the others
        ├── StochasticModelError             the forward pass draws random numbers
        ├── CheckpointError                  a checkpoint that does not fit, or is not safe to read
        ├── SecondDerivativeError            a part of it can be differentiated once, but not twice
        └── UncapturedParameterError         parameters without a layer rule, and no fallback allowed

    KinsightWarning (UserWarning)
    ├── NamesakeWarning                      queries have the id of a sample of the data, and other inputs
    ├── NonFiniteWarning                     what is watched in training is nan or inf
    ├── PrecisionWarning                     something is computed in less than the parameters' precision
    ├── SlowAttentionWarning                 attention is computed by matrix products, not by fused kernels
    └── ZeroGradientWarning                  samples whose similarity is undefined

A message says what is wrong with names and numbers, why it matters, and what to do.
"""


class KinsightError(Exception):
    """Root of every error kinsight raises on purpose."""


class InputError(KinsightError, ValueError):
    """What was passed in cannot be used."""


class EmptyDataError(InputError):
    """There are no samples."""


class ShapeError(InputError):
    """Shapes or lengths do not fit each other."""


class SampleTypeError(InputError, TypeError):
    """A kind of input or data set that is not understood."""


class UnknownNameError(InputError, LookupError):
    """A name that is not among the known ones."""


class SourceError(InputError):
    """A string that names a model or a data set cannot be resolved."""


class TargetError(InputError):
    """Targets are missing, or of the wrong kind."""


class OutputCountError(InputError):
    """There are too many outputs to differentiate each of them."""


class ChangedDataError(InputError):
    """The data is not what an index was built from."""


class EngineError(KinsightError, RuntimeError):
    """Ray is not there, or cannot be sent the work."""


class NonFiniteError(KinsightError, ArithmeticError):
    """Outputs or gradients hold nan or inf."""


class StoreError(KinsightError, OSError):
    """An index on disk cannot be used as asked."""


class NoIndexError(StoreError, FileNotFoundError):
    """There is no index in a folder."""


class IndexExistsError(StoreError, FileExistsError):
    """There is an index already, or something that is none."""


class DamagedIndexError(StoreError):
    """The bytes of an index are not those that were committed."""


class IncompleteIndexError(StoreError):
    """An index is half built."""


class IndexFormatError(StoreError):
    """An index is of a format that is not understood."""


class BusyIndexError(StoreError):
    """Another process writes the index."""


class IndexWriteError(StoreError):
    """An index cannot be written: a full or read-only disk."""


class ModelError(KinsightError, RuntimeError):
    """The model itself stands in the way."""


class WrongModelError(ModelError):
    """An index was built with other weights, or for another output."""


class ModelCallError(ModelError):
    """The model raised while it was run on a batch."""


class NoParametersError(ModelError):
    """There is nothing to differentiate with respect to."""


class IndependentOutputError(ModelError):
    """The output depends on none of the chosen parameters."""


class MixedSamplesError(ModelError):
    """One sample's output depends on the other samples of its batch."""


class StochasticModelError(ModelError):
    """The forward pass draws random numbers."""


class CheckpointError(ModelError):
    """A checkpoint does not fit the model, or is not safe to read."""


class UncapturedParameterError(ModelError):
    """Some parameters have no layer rule, and the generic path was ruled out."""


class SecondDerivativeError(ModelError):
    """A part of the model can be differentiated once, but not twice."""


class KinsightWarning(UserWarning):
    """Root of every warning kinsight gives."""


class NamesakeWarning(KinsightWarning):
    """Queries have the id of a sample of the data, and other inputs: they are taken for other samples."""


class ZeroGradientWarning(KinsightWarning):
    """Some samples have a zero gradient, so their similarity is undefined."""


class SlowAttentionWarning(KinsightWarning):
    """Attention is computed by matrix products, not by fused kernels."""


class PrecisionWarning(KinsightWarning):
    """Something is computed in less than the precision of the parameters."""


class NonFiniteWarning(KinsightWarning):
    """Outputs or gradients of a network that is watched in training hold nan or inf."""
