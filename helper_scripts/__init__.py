"""Commands that work on finished runs: the plot, the table, the whole ladder, samples, mixtures, the benchmark."""
