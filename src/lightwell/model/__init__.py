"""The two model families as complete forward passes (gpt2.py, modern.py), their slow twin (reference.py), what they
cost (count.py), and the parts they call: attention, norms, loss, key/value cache, initialisation.
"""
