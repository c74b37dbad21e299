"""Ends with 0 if the service of this container answers: the images' health check.

Whose certificate it is does not matter here. Where callers need one of their own, this has none, and a
service that turns it away for that works.
"""

import os
import ssl
import sys
import urllib.request
from urllib.error import URLError

scheme = "https" if os.environ.get("MDCTR_TLS_CERT") else "http"
context = ssl.create_default_context()
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
ask = urllib.request.build_opener(
    urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
)
try:
    ask.open(f"{scheme}://127.0.0.1:{os.environ['MDCTR_PORT']}/healthz", timeout=2)
except OSError as error:  # of which URLError and SSLError are some
    reason = error.reason if isinstance(error, URLError) else error
    turned_away = "MDCTR_TLS_CLIENT_CA" in os.environ and isinstance(
        reason, ssl.SSLError | ConnectionResetError
    )
    if not turned_away:
        sys.exit(f"the service does not answer: {reason}")
