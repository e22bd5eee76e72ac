"""Packaging: `kernels/` is installed as `s2clip.kernels`, because the top-level name belongs to another package."""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = (ROOT / "s2clip" / "version.py").read_text().split('"')[-2]

DEMO = ["gradio>=6"]
SUPERVISION = ["supervision>=0.30"]
YOLO = ["opencv-python-headless>=4.10"]
TRANSFORMERS = ["transformers>=4.57"]
# GeoPackage by pyogrio and not by fiona: it takes arrays of geometries, and appends
GEO = ["rasterio>=1.4.3", "pyogrio>=0.11", "shapely>=2"]
VIDEO = ["av>=14"]
HEIF = ["pillow-heif>=1.1"]
DIFFUSION = ["diffusers>=0.36", "transformers>=4.57"]
# FastAPI, Starlette and uvicorn come with LitServe; python-multipart reads forms
SERVE = ["litserve>=0.2.19", "prometheus-client>=0.21", "python-multipart>=0.0.20"]
RAY = ["ray[data]>=2.55", "pandas>=2.2.3", "pyarrow>=18"]
PLOT = ["matplotlib>=3.10.7"]
TEST = [
    "pytest>=8",
    "pytest-xdist>=3.6",
    "hypothesis>=6.100",
    "opencv-python-headless>=4.10",
    "connected-components-3d>=3.18",
    "scipy>=1.13",
    "scikit-image>=0.24",
    "pycocotools>=2.0.11",
    "selenium>=4.20",
    "mypy>=1.20",
    "colorspacious>=1.1.2",
    "fonttools>=4.50",
    "setuptools>=77",  # what the source distribution holds is asked of setup.py
    "nbclient>=0.10",
    "nbformat>=5.10",
    "ipykernel>=6.29",
    *DEMO,
    *SUPERVISION,
    *SERVE,
    *RAY,
    "moto[s3]>=5.1",  # an object store on this machine, served by Flask
    "flask>=3",
    "flask-cors>=5",
    "httpx2>=2",  # what Starlette's test client asks with
    # readers of our files, whose packages are installed by tests/readers.txt without what their screens need
    "json-stream>=2.3",
    "lxml>=5",
    "python-dateutil>=2.8.2",
    "urllib3>=2",
    "platformdirs>=4",
    "attrs>=24.2",
    "imagesize>=1.4",
    "loguru>=0.7",
    "imgviz>=2",
    "scikit-learn>=1.5",
    *PLOT,
    *DIFFUSION,
    *GEO,
    *VIDEO,
    *HEIF,
]
LINT = ["ruff==0.17.6", "import-linter>=2.4", "mypy>=1.20", "types-PyYAML>=6", "types-tqdm>=4.66"]
BENCH = ["pytest>=8", "pytest-benchmark>=5"]

setup(
    name="s2clip",
    version=VERSION,
    description="Open-vocabulary segmentation without training, on hand-written Triton kernels",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=["s2clip.kernels", *find_packages(include=["s2clip", "s2clip.*"])],
    package_dir={"s2clip.kernels": "kernels"},
    package_data={"s2clip": ["py.typed"], "s2clip.data": ["*", "*/*"]},
    install_requires=[
        "torch>=2.10",
        "torchvision>=0.25",
        "numpy>=1.26",
        "pillow>=12.3",
        "tifffile>=2025.1",
        "imagecodecs>=2025.3",
        "open_clip_torch>=3.3",
        "timm>=1.0.31",
        "segment-anything==1.0",
        "safetensors>=0.4",
        "huggingface_hub>=0.34",
        "click>=8.2",
        "tqdm>=4.66",
        "pyyaml>=6",
        "regex>=2024.11",
        "anyascii>=0.3.2",
    ],
    extras_require={
        "test": TEST,
        "bench": BENCH,
        "coco": ["pycocotools>=2.0.11"],
        "trident": ["scikit-image>=0.24"],
        "demo": DEMO,
        "supervision": SUPERVISION,
        "yolo": YOLO,
        "diffusion": DIFFUSION,
        "radseg": TRANSFORMERS,
        "metaclip2": TRANSFORMERS,
        "eomt": TRANSFORMERS,
        "sam2": TRANSFORMERS,
        "geo": GEO,
        "video": VIDEO,
        "heif": HEIF,
        "plot": PLOT,
        "serve": SERVE,
        "ray": RAY,
        "dev": [*TEST, *BENCH, *LINT, "uv>=0.9"],
    },
    entry_points={"console_scripts": ["s2clip = s2clip.cli:main"]},
    classifiers=[
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Typing :: Typed",
    ],
)
