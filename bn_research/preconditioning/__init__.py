"""Whitening by the optimizer: gradients times inverse covariances of inputs.

Section 2 of the Batch Normalization paper names two ways to whiten the inputs
of layers: to modify the network, or to change the parameters of the
optimization algorithm. `norms` and `layers` are the first way. This room is the
second way, in two forms that are equal in exact arithmetic:

* `WhitenedDense` (PRONG) keeps each dense layer in coordinates in which its
  input is white; plain descent on the parameters is then preconditioned.
* `precondition_by_input_covariance` leaves the layers as they are, and
  multiplies their gradients by the inverse covariance.

Each brings a hook along (`hooks`), by which a step of training gives it the
moments of the layers' inputs.
"""

from bn_research.preconditioning.input_covariance import (
  precondition_by_input_covariance,
)
from bn_research.preconditioning.recording import record_inputs
from bn_research.preconditioning.whitened_dense import WhitenedDense

__all__ = [
  'WhitenedDense',
  'precondition_by_input_covariance',
  'record_inputs',
]
