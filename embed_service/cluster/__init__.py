"""ENGINES=ray: the process between the HTTP process and Ray, and the Ray node of a box."""
