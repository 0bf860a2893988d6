"""`qmdctl scale`: vLLM on two boxes by its own tensor parallelism, rendered. Nothing is changed and nothing is run.

boxes.py    the two addresses, the interface, the way; what cannot be
memory.py   what each box holds, and the figures that follow from it
render.py   the compose override, the lines for .env and the netplan of each box
steps.py    what to type, in order, and what to see
"""
