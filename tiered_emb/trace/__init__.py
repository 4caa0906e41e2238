"""Traces of which rows a model looks up: recording, writing and reading them."""
