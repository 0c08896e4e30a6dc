"""The demo: from a checkpoint to boxes on a photograph, without a GPU."""
