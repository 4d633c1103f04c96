"""The machine: device and precision, threads, allocator, memory, random streams, processes (World), observers."""
