"""Names that the graph, the configs and the runtimes share."""

INPUT, OUTPUT = "input", "output"  #: of the core tensors
