"""Measured settings of the server: the entry point's, and those of the servers that benchmarks start."""

TUNING = (
    # So many put the frames of a batch's requests together: 3 % more frames a second on an H200.
    "--buffer-manager-thread-count=4",
    # With no GPU memory for what lies between the steps, the network's answers go to the host in one go. Else
    # each request's are copied alone, which makes 2763 frames a second on an H200 instead of 3593. The number
    # of no GPU does nothing.
    *(f"--cuda-memory-pool-byte-size={gpu}:0" for gpu in range(8)),
)
