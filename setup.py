"""Packaging. Everything about the tools (ruff, pytest) and the build system is in ``pyproject.toml``."""

import re
from pathlib import Path

from setuptools import Command, find_packages, setup
from setuptools.command.build import build

HERE = Path(__file__).parent
INIT = (HERE / "nnunet_dvcl/__init__.py").read_text("utf-8")
STARTUP_FILE = "nnunet_dvcl/nnunet_dvcl.pth"


class build_pth(Command):
    """Build step that puts the start-up file where Python looks for it: into the root of site-packages.

    Sub-commands of ``build`` are setuptools' documented way to extend a wheel and an editable wheel (PEP 660) alike
    (``setuptools.command.build.SubCommand``). All else is worse in an editable build: it runs neither ``develop`` nor
    ``install_data``, ``build_py`` only answers for modules, and ``editable_wheel`` is private and hands out nothing but
    the finished zip. It zips the folder that it has set as ``install_lib``, hence the target below; RECORD lists the
    file by itself.
    """

    def initialize_options(self) -> None:
        self.build_lib = None
        self.editable_mode = False

    def finalize_options(self) -> None:
        self.set_undefined_options("build_py", ("build_lib", "build_lib"))

    def run(self) -> None:
        target = self.get_finalized_command("install").install_lib if self.editable_mode else self.build_lib
        self.copy_file(STARTUP_FILE, target)

    def get_source_files(self) -> list[str]:
        return [STARTUP_FILE]

    def get_output_mapping(self) -> dict[str, str]:
        return {} if self.editable_mode else {f"{self.build_lib}/{Path(STARTUP_FILE).name}": STARTUP_FILE}

    def get_outputs(self) -> list[str]:
        return list(self.get_output_mapping())


build.sub_commands.append(("build_pth", None))

setup(
    name="nnunet_dvcl",
    version=re.search(r'^__version__ = "(.+)"$', INIT, re.MULTILINE)[1],
    description="Semi-supervised segmentation for nnU-Net v2 by distance-aware voxel-wise contrastive learning (DVCL)",
    long_description=(HERE / "README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    # What nnunet_dvcl/ imports, no more: tests/test_install.py compares.
    install_requires=[
        "acvl-utils>=0.2.6",
        "batchgenerators>=0.25.3",
        "batchgeneratorsv2>=0.3.2",
        "joblib>=1.3",
        "matplotlib>=3.10",
        "nibabel>=4.0.2",
        "nnunetv2>=2.8.1,<3",
        "numpy>=1.26",
        "packaging>=23",
        "pandas>=2",
        "pydantic>=2",
        "pydantic-core>=2",
        "PyYAML>=6",
        "scikit-learn>=1.2",
        "scipy>=1.10,<2",
        "SimpleITK>=2.2.1",
        "surface-distance>=0.1",
        "torch>=2.1.2",
        "tqdm>=4.66",
    ],
    extras_require={
        "test": [
            "faiss-cpu",
            "hypothesis",
            "pytest>=7",
            "pytest-timeout",
            "pytest-xdist>=3.8",
            "ruff",
            "setuptools>=70.1",
        ]
    },
    packages=find_packages(include=["nnunet_dvcl*"]),
    # Said explicitly, it makes the editable install one line with this folder's path; setuptools would otherwise add an
    # import finder, which costs time at every start of Python.
    package_dir={"": "."},
    cmdclass={"build_pth": build_pth},
    entry_points={"console_scripts": ["nnunet_dvcl = nnunet_dvcl.cli:main"]},
)
