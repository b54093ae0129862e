# shellcheck shell=bash
# Sourced by the other scripts: sets up the Python environment once and leaves `python` pointing at it.
# An active virtual environment (or conda environment) is used as it is; else .venv is made.
# usage: source launch/environment.sh EXTRA[,EXTRA…]   (extras of setup.py; may be empty)

setup_environment() {
  local extras="$1" python="${PYTHON:-python3}" prefix stamp
  cd "$(dirname "${BASH_SOURCE[0]}")/.." || return 1
  if [ -z "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ]; then
    if [ ! -x .venv/bin/python ]; then
      "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || {
        echo "error: Python 3.11 or newer is needed; set PYTHON=/path/to/python3.11 and run again." >&2
        return 2
      }
      echo "== making .venv with $("$python" --version)"
      "$python" -m venv .venv || {
        echo "error: could not make .venv (on Debian: apt-get install python3-venv)." >&2
        return 2
      }
    fi
    # shellcheck disable=SC1091
    source .venv/bin/activate
  fi
  # The stamp names what is installed, so that a second run starts at once.
  prefix="$(python -c 'import sys; print(sys.prefix)')"
  stamp="$prefix/.anygpt_jax-$(cat setup.py constraints.txt launch/parity.txt launch/parity_apart.txt | cksum | cut -d' ' -f1)-${extras:-base}"
  if [ ! -f "$stamp" ]; then
    echo "== installing anygpt_jax${extras:+[$extras]} (about a minute)"
    python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".${extras:+[$extras]}" || {
      echo "error: the installation failed; the lines above say why." >&2
      return 2
    }
    case "$extras" in
      *parity*)
        set -- python -m pip install --quiet --disable-pip-version-check --no-deps
        if ! "$@" -r launch/parity.txt ||
          ! "$@" --upgrade --target "$prefix/originals" -r launch/parity_apart.txt; then
          echo "error: the originals of launch/parity*.txt could not be installed; the lines above say why." >&2
          return 2
        fi
        ;;
    esac
    touch "$stamp"
  fi
}
