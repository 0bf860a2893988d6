"""Makes the Python environments on a machine that has Python 3.11+ and little else: `python3 -m scripts.bootstrap LEVEL`.

__main__.py       finds a Python that is new enough
environment.py    levels, stamps, the installation
obtain_uv.py      the ways to get uv, which does the installing
pip_settings.py   the index, certificates and proxy that pip is configured with, told to uv
download_size.py  how much will be downloaded
"""
