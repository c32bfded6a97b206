"""The steps of the pipeline: each reads settings and inputs of a cell, calls the library, and writes outputs."""
