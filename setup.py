"""Build synseg_kit from settings.ini, with the shipped models and run notebooks inside the package."""
from configparser import ConfigParser
from pathlib import Path

from setuptools import setup

HERE = Path(__file__).parent
STATUS = {'3': '3 - Alpha', '4': '4 - Beta', '5': '5 - Production/Stable'}

config = ConfigParser(delimiters=['='], interpolation=None)
config.read(HERE / 'settings.ini', encoding='utf-8')
settings = config['DEFAULT']


def lines(key):
    """Split a setting of one entry a line."""
    return [line.strip() for line in settings[key].splitlines() if line.strip()]


setup(
    name=settings['lib_name'],
    version=settings['version'],
    description=settings['description'],
    long_description=(HERE / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    author=settings['author'],
    license_expression=settings['license'],
    keywords=[word.strip() for word in settings['keywords'].split(',')],
    classifiers=[
        f'Development Status :: {STATUS[settings["status"]]}',
        'Intended Audience :: Science/Research',
        'Natural Language :: English',
        'Programming Language :: Python :: 3',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
    ],
    python_requires='>=' + settings['min_python'],
    install_requires=lines('requirements'),
    extras_require={extra: lines(f'{extra}_requirements') for extra in ('dev', 'onnx', 'data', 'ray')},
    entry_points={'console_scripts': lines('console_scripts')},
    # A wheel carries data/ as synseg_kit/data and nbs/runs as synseg_kit/runs; a clone reads them where they lie.
    packages=['synseg_kit', 'synseg_kit.data', 'synseg_kit.runs'],
    package_dir={'synseg_kit': 'synseg_kit', 'synseg_kit.data': 'data', 'synseg_kit.runs': 'nbs/runs'},
    package_data={'synseg_kit': ['static/*'], 'synseg_kit.data': ['**/*'], 'synseg_kit.runs': ['*.ipynb']},
    include_package_data=False,
    zip_safe=False,
)
