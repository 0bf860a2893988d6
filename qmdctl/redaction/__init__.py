"""How what may hold a secret is shown, recorded and packed.

names.py           what is called a secret
shapes.py          what looks like one
known.py           those that are known, in every form; then the shapes: for a bundle
command_lines.py   units, containers and .env as they are shown and recorded
"""
