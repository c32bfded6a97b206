"""Timings as ratios, with both sides measured in one run. They are not part of the tests."""
