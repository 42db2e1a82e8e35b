"""Names that the graph, the model repository and the runtimes share."""

INPUT, OUTPUT = "input", "output"  #: of the core tensors
MODEL = "restormer"  #: the network's folder in a model repository
ADAPTER = "cpu_model.py"  #: in the network's folder: becomes model.py of every version served on a CPU
