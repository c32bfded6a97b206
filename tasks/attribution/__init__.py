"""Scores of neurons: how strongly each row of gate_proj drives the model's most confident answer."""
