"""The records that cross the boundary between a host application, hvcore and a driver."""
