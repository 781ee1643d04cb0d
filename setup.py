"""The tag of the wheel, and the parallel build. Everything else is in pyproject.toml."""

import copy
import os
import sysconfig

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

# The C++ kernels use the stable ABI of Python 3.11, so one wheel serves every later Python. A free-threaded Python has no stable ABI: there
# the wheel is for that Python alone and has no kernels, and the plain torch backend replaces them.
FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))


class BuildApart(build_ext):
    """Compiles each extension in a folder of its own: all are built from one source, and their object files have the same name."""

    def build_extension(self, ext: Extension) -> None:
        apart = copy.copy(self)
        apart.build_temp = os.path.join(self.build_temp, ext.name)
        super(BuildApart, apart).build_extension(ext)


tag = {} if FREE_THREADED else {"bdist_wheel": {"py_limited_api": "cp311"}}
# The builds for several instruction sets are compiled at the same time.
setup(options={"build_ext": {"parallel": True}, **tag}, cmdclass={"build_ext": BuildApart})
