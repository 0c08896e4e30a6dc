"""Trains a CenterNet from scratch, on drawn scenes of coins or on any set in COCO form."""
