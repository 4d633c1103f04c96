"""The glass box: capture what a program computes, explain each gradient with its numbers, verify it three ways.

It works on any PyTorch code. `call` is one kernel call, `rules` the chain rule as a table, `capture` and `trace` record
a step, `explain` and `verify` read the two together.
"""
