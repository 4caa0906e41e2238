"""The command line: `tiered-emb COMMAND`. One module a command; `main.py` lists them."""
