"""The QEMU machine protocol: wire, errors, client, and one question to many instances.

Source: QEMU documentation, "QEMU Machine Protocol Specification" (``interop/qmp-spec``).
"""

from hvcore_kvm.qmp.client import QmpClient, State
from hvcore_kvm.qmp.errors import QmpClosed, QmpConnectError, QmpError, QmpProtocolError, QmpRefused, QmpTimeout
from hvcore_kvm.qmp.many import Answer, Question, ask_many

__all__ = [
    "Answer",
    "QmpClient",
    "QmpClosed",
    "QmpConnectError",
    "QmpError",
    "QmpProtocolError",
    "QmpRefused",
    "QmpTimeout",
    "Question",
    "State",
    "ask_many",
]
