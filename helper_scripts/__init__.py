"""Commands that work on finished runs: the plot, the table, the whole ladder, the benchmark."""
