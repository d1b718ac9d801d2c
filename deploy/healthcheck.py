"""The image's HEALTHCHECK: exit code 0 if the server in this container is ready, else 1.

http.client, because urllib would send the request to a proxy that HTTP_PROXY names.
"""

import http.client
import os
import sys


def is_ready(port: int, seconds: float = 4.0) -> bool:
    """Whether /health/ready of the server on this port answers 200 within `seconds`."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=seconds)
    try:
        connection.request("GET", "/health/ready")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(0 if is_ready(int(os.environ["NOMICBERT_PORT"])) else 1)
