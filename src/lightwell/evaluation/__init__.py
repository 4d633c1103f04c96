"""Evaluation: held-out loss and bits per byte (`loss`), how they are reported (`report`), copies of the training text.

Import from the files: `from lightwell.evaluation.loss import evaluate_text`.
"""
