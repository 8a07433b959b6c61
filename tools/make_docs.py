"""Build the docs site from the notebooks as they are stored and the package's source: static pages that ask nothing of the net.

Nothing is executed. A dead link, a missing picture, a request to elsewhere or a formula that cannot be read ends the build,
and the site that was there stays.
"""
import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main():
    """Build the site, or say what is wrong with it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, default=ROOT / '_docs', metavar='FOLDER', help='folder to write (default: _docs)')
    arguments = parser.parse_args()
    sys.path[:0] = [str(ROOT)]  # the clone's package, whether it is installed or not
    from docs.site import build
    try:
        site = build(ROOT, arguments.out)
    except (ValueError, OSError) as error:
        print(f'make_docs: {error}', file=sys.stderr)
        return 1
    names = sum(len(module.exports) for module in site.names.modules.values())
    print(f'{arguments.out / "index.html"}: {len(site.pages)} pages, {names} public names')
    return 0


if __name__ == '__main__':
    sys.exit(main())
