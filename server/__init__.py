"""Start Triton: one list of flags, checks before the start, and the process from start to stop.

Standard library only, so that the same code runs on a bare host, in a container and under any Python. The exception is
`assemble`, which reads and edits configs with protobuf and Triton's schema (tritonclient).
"""
