# Sets PYTHON to an interpreter with the project's requirements. To be sourced from the repository's root.
#
# An active environment (venv or conda) that already satisfies pyproject.toml is used as it is. Otherwise the
# environment in $SDCL_VENV (default: .venv) is made if needed, and requirements.txt installed into it once.

if [ -z "${SDCL_VENV:-}" ] && [ -n "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ] && python scripts/check_env.py >/dev/null 2>&1; then
    PYTHON=$(command -v python)
else
    venv=${SDCL_VENV:-.venv}
    stamp="$venv/.installed-$(sha256sum requirements.txt | cut -c1-16)"
    mkdir -p "$(dirname "$venv")"
    exec 9>"$venv.lock"
    flock 9                                     # two scripts at once: the second waits for the first one's installation
    if [ ! -e "$stamp" ]; then
        python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "error: Python 3.10 or newer is needed, $(python3 --version) was found" >&2; exit 2; }
        echo "installing the requirements into $venv (several GB with torch, once; minutes)" >&2
        [ -x "$venv/bin/python" ] || python3 -m venv "$venv"
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r requirements.txt
        touch "$stamp"
    fi
    exec 9>&-
    PYTHON="$venv/bin/python"
fi
