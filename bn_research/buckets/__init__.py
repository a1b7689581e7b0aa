"""Workdirs in buckets of Google Cloud Storage (`gs://`) and S3 (`s3://`).

The rest of the package reaches buckets through `disk` and `locking`. The files
of a workdir become objects, which are written whole or not at all, and the lock
of a workdir becomes a lease.
"""
