"""Evidence: statistics, figures, and the report that shows them."""
