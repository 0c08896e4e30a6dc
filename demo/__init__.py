"""Trains the small checkpoints that the demo and the accuracy study use."""
