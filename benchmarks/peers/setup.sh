#!/bin/sh
# One virtual environment a peer, under .peers/ in the project's root; done again only when the
# peer's requirements change.
#
#     benchmarks/peers/setup.sh [art art-keras3 trojanzoo backdoormbti]
#
# PYTHON (default python3.11) makes them. The lists are complete, so nothing is resolved: --no-deps
# keeps BackdoorMBTI's two hundred pins out. For a CPU build of torch where pip would take CUDA's,
# set PIP_INDEX_URL, PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS as usual.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
root=$(CDPATH='' cd -- "$here/../.." && pwd)
python=${PYTHON:-python3.11}

[ $# -gt 0 ] || set -- art art-keras3 trojanzoo backdoormbti
for peer in "$@"; do
    wanted=$here/$peer/requirements.txt
    place=$root/.peers/$peer
    if [ ! -f "$wanted" ]; then
        echo "setup.sh: no peer $peer" >&2
        exit 2
    fi
    if cmp -s "$wanted" "$place/installed.txt"; then
        echo "$peer: as it was"
        continue
    fi
    "$python" -m venv --clear "$place"
    "$place/bin/python" -m pip install --quiet --no-deps --requirement "$wanted"
    cp "$wanted" "$place/installed.txt"
    echo "$peer: installed"
done
