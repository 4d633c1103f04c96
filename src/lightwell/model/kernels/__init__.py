"""Fast twins on a CPU, in C: for training (rows.c and attention.c, by fused.py) and for writing one text (one_token.c,
by generation/step_in_c.py). Built where there is a compiler (build.py).
"""
