"""Names that both params.yaml and the command line know. Nothing is imported here: `dsm --help` answers at once."""

STUDIES = (
    "compare", "fractions", "seeds", "selection", "projections", "attributions", "layers", "transfer", "timing",
    "multilingual", "domains", "generation", "calibration", "bridge",
)  # fmt: skip
WEIGHT_METHODS = ("magnitude", "wanda", "ria", "sparsegpt")
SYSTEMS = (
    "calibrated", "random", "random_searched", "sft", "lora", "iti", "caa", "sadi_hidden", "sadi_neuron", "sadi_head",
    *WEIGHT_METHODS,
)  # fmt: skip
