"""Pictures in, detections out, and the contract between the layers: what server, exporter and clients share.

It runs inside Triton's container, so NumPy, OpenCV, simplejpeg, isal and Pillow are all that it needs.
"""
