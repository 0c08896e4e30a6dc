"""Measured settings of the server: the entry point's, and those of the servers that benchmarks start."""

TUNING = (
    # So many put the frames of a batch's requests together: 3 % more frames a second on an H200.
    "--buffer-manager-thread-count=4",
    # The preprocess model hands the network its frames there: 25 MB a batch, of three instances. Without any,
    # Triton 24.10 ends at the first of them. The number of no GPU does nothing.
    *(f"--cuda-memory-pool-byte-size={gpu}:{2**29}" for gpu in range(8)),
)
