"""The steps of the pipeline. Each reads settings and inputs of a cell, calls the library, and writes outputs."""
