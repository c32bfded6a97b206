"""Scores of neurons: how strongly each row of a projection drives the model's most confident answer."""
