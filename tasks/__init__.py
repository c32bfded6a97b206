"""The steps of the pipeline (one short module each) and the packages that they use."""
