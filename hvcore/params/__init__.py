"""The parameter subsystem: declare once; structure, check, explain and export from the declaration."""

from hvcore.params import checks as checks
