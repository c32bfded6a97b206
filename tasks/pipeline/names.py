"""Names for both params.yaml and the command line. Nothing is imported here, so that `dsm --help` is fast."""

STUDIES = (
    "compare", "fractions", "seeds", "selection", "projections", "attributions", "layers", "transfer", "timing",
    "cross_benchmark", "generation", "calibration", "bridge", "word_neurons", "choice", "interactions",
)  # fmt: skip
RENAMED_STUDIES = {"multilingual": "cross_benchmark", "domains": "cross_benchmark"}
WEIGHT_METHODS = ("magnitude", "wanda", "ria", "sparsegpt")
SYSTEMS = (
    "calibrated", "random", "random_searched", "sft", "lora", "iti", "caa", "sadi_hidden", "sadi_neuron", "sadi_head",
    *WEIGHT_METHODS,
)  # fmt: skip
