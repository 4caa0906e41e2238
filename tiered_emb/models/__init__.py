"""Models to train on top of a tiered table, and what is needed to judge them."""
