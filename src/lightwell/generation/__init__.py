"""Generation: logits to a token (`sample`), a prompt to streamed text (`engine`), and the slow loop both are held to.

Import from the files: `from lightwell.generation.engine import Engine`.
"""
