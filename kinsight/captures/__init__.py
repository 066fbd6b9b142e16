"""What a batch leaves behind in a model: it is run untouched, and the graph names every use of every parameter."""
