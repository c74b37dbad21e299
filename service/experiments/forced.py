"""Forced arms: how a tester sees an arm that chance did not give.

`X-Force-Arm: <experiment>=<arm>;<expires>;<signature>`. `expires` is in whole seconds since 1970, and the
signature the HMAC-SHA256 of all that stands before its semicolon, in hexadecimal. Without it everybody could
choose what they are shown, and look at what is not out yet.
"""

from __future__ import annotations

import hashlib
import hmac
import re

from service.contract.errors import RequestError
from service.experiments.assign import Assignment
from service.experiments.document import Experiments

HEADER = "X-Force-Arm"
_FORM = re.compile(r"(?P<signed>([a-z0-9._-]+)=([a-z0-9._-]+);([0-9]{1,12}));([0-9a-f]{64})", re.ASCII)


class ForceRefused(RequestError):
    """An arm cannot be forced: the header is malformed, not signed by us, too old, or names nothing."""


def sign(secret: str, experiment: str, arm: str, expires: int) -> str:
    """The header's value.

    Args:
        secret: that the service verifies with.
        experiment: by name.
        arm: by name.
        expires: seconds since 1970 until which it is good.
    """
    signed = f"{experiment}={arm};{expires}"
    return f"{signed};{_signature(secret, signed)}"


def verify(secret: str, value: str, experiments: Experiments, now: float) -> Assignment:
    """What a header's value forces.

    Nothing is said of experiments before the signature is known to be right.

    Args:
        secret: that it must have been signed with.
        value: of the header.
        experiments: the document.
        now: seconds since 1970.

    Raises:
        ForceRefused: nothing.
    """
    if not secret:
        raise ForceRefused("no arm can be forced: there is no secret to sign with")
    form = _FORM.fullmatch(value)
    if form is None:
        raise ForceRefused(f"{HEADER} is not <experiment>=<arm>;<expires>;<signature>")
    signed, name, arm, expires, signature = form.groups()
    if not hmac.compare_digest(_signature(secret, signed), signature):
        raise ForceRefused(f"the signature of {HEADER} is wrong")
    if int(expires) <= now:
        raise ForceRefused(f"{HEADER} has expired")
    layer, experiment = experiments.by_name.get(name, ("", None))
    if experiment is None:
        raise ForceRefused(f"{HEADER}: there is no experiment {name}")
    if arm not in experiment.arms:
        raise ForceRefused(f"{HEADER}: {name} has no arm {arm}")
    return Assignment(layer, name, arm, experiment.unit, experiment.arms[arm], forced=True)


def _signature(secret: str, signed: str) -> str:
    return hmac.new(secret.encode(), signed.encode(), hashlib.sha256).hexdigest()
