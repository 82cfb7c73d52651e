"""Translation between Ganeti's flat names and an instance of this driver, both ways."""

from hvcore_kvm.ganeti.advice import assess
from hvcore_kvm.ganeti.coercion import coerce
from hvcore_kvm.ganeti.from_instance import from_instance
from hvcore_kvm.ganeti.parity import PARITY, parity_markdown, parity_rows
from hvcore_kvm.ganeti.reading import GanetiParameters
from hvcore_kvm.ganeti.to_instance import to_instance
from hvcore_kvm.ganeti.translation import Translation, Unplaced

__all__ = [
    "PARITY",
    "GanetiParameters",
    "Translation",
    "Unplaced",
    "assess",
    "coerce",
    "from_instance",
    "parity_markdown",
    "parity_rows",
    "to_instance",
]
