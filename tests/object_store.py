"""An object store on this machine: moto's S3, over HTTP."""

import contextlib
import logging

ACCESS = "an-id:a-secret"


@contextlib.contextmanager
def object_store():
    """`address(path)` of objects in a bucket that is there for the time of the block."""
    import pyarrow.fs
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line for each request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    options = f"?endpoint_override={host}:{port}&scheme=http&region=us-east-1"
    try:
        filesystem, _ = pyarrow.fs.FileSystem.from_uri(f"s3://{ACCESS}@bucket{options}&allow_bucket_creation=true")
        filesystem.create_dir("bucket")
        yield lambda path: f"s3://{ACCESS}@bucket/{path}{options}"
    finally:
        server.stop()
