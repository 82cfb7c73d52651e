"""Moving a running instance between two hosts: both sides of it, one operation a module.

Who runs the guest is never decided by what somebody believes: the source's QEMU says whether it has let go of it, and
the destination's, which was started paused, whether all of it has arrived. Where neither can be asked, the events they
wrote decide; where those do not, nobody runs it.
"""
