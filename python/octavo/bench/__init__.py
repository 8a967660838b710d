"""`octavo bench`: offline, online and start-up measurements. One concept a file."""
