"""What 2507.09185 and its reviewers measured, and what they left open: one study each, on any declared cell."""
