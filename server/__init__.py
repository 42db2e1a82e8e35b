"""How Triton is started: the one list of flags, the checks before it starts, and its life as a process.

Standard library only, so that the same code runs on a bare host, in a container and under any Python; except where it
reads and edits configs, which takes protobuf and Triton's schema (tritonclient).
"""
