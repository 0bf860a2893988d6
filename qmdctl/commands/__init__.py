"""One file per verb: arguments in, calls to the rooms above, result out. Each imports what it needs inside its function."""
