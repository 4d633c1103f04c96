"""Fast twins for training on a CPU, in C (rows.c): built where there is a compiler (build.py), called from fused.py."""
