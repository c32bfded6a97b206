"""Names that both params.yaml and the command line know. Nothing is imported here: `dsm --help` answers at once."""

STUDIES = (
    "compare", "fractions", "seeds", "selection", "projections", "attributions", "layers", "transfer", "timing",
    "multilingual", "domains", "generation",
)  # fmt: skip
SYSTEMS = (
    "calibrated", "random", "random_searched", "sft", "lora", "iti", "caa", "sadi_hidden", "sadi_neuron", "sadi_head",
    "magnitude", "wanda", "ria", "sparsegpt",
)  # fmt: skip
