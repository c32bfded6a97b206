"""Studies on any declared cell: experiments of 2507.09185 and of its reviewers, and open questions."""
