"""The one thing that pyproject.toml cannot say: the native engine, built where possible."""

from glob import glob

from setuptools import Extension, setup

# A plain shared library that gpt2cli.decoders.native loads with ctypes. Instruction sets are chosen
# when it runs, so it is built for any CPU; `optional` makes a missing compiler no error.
setup(
    ext_modules=[
        Extension(
            "gpt2cli.decoders.native._engine",
            ["gpt2cli/decoders/native/engine.cpp"],
            depends=glob("gpt2cli/decoders/native/*.h"),
            optional=True,
            language="c++",
            extra_compile_args=["-O3", "-std=c++17", "-ffp-contract=fast", "-fno-math-errno"],
            extra_link_args=["-pthread"],
        )
    ]
)
