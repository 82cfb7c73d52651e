"""Parameters of the KVM driver, a module for each part of an instance."""
