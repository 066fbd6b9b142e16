"""Questions, one folder each: `python -m experiments.<question>`. docs/experiments.md is made from their results."""
