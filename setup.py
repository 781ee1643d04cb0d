"""The tag of the wheel, and the parallel build. Everything else is in pyproject.toml."""

import sysconfig

from setuptools import setup

# The C++ kernels use the stable ABI of Python 3.11, so one wheel serves every later Python. A free-threaded Python has no stable ABI: there
# the wheel is for that Python alone and has no kernels, and the plain torch backend replaces them.
FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))

tag = {} if FREE_THREADED else {"bdist_wheel": {"py_limited_api": "cp311"}}
# The builds for several instruction sets are compiled at the same time.
setup(options={"build_ext": {"parallel": True}, **tag})
