"""From a batch to its per-sample gradients, by the fastest exact route each parameter has."""
