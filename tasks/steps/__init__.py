"""The steps of the pipeline. Each reads settings and inputs of a cell, calls the library, and writes outputs."""

import gc
import sys

# Importing torch and transformers makes a million objects, none of which is garbage: a fifth of the CPU time of the
# imports went into looking for some. `run_main` turns the collector on again.
if sys.argv[0] == "-m":  # so it is while Python locates the module of `python -m tasks.steps.<step>`
    gc.disable()
