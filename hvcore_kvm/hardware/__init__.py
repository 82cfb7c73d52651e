"""From the parts of a definition to QEMU options, a module for each part; touching nothing."""
