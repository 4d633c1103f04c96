"""From text to training batches: files to documents (sources), documents to a training and a held-out part (split),
to token shards on disk (prepare, shards, dataset), and from (seed, step) to a batch (batches, prefetch)."""
