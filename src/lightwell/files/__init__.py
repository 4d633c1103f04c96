"""Durable folders: a file or folder is there whole or not at all, its bytes can be checked, hostile ones do no harm.

`ops` is the only module that changes the disk; `atomic` commits; `hashing` and `verify` check; `lock` keeps a second
process out; `paths` and `limits` stand between us and files that strangers wrote; `translate` turns the operating
system's errors into sentences.
"""
