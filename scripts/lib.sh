# shellcheck shell=bash
# Shell functions that the project's scripts share. Sourced, not run:
#
#   . "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
#
# Sets PROJECT_ROOT (absolute).

# shellcheck disable=SC2034
PROJECT_ROOT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)

# A newer Node.js than the machine's, if scripts/setup needed one
if [[ -x $PROJECT_ROOT/.cache/node/bin/node && :$PATH: != *:$PROJECT_ROOT/.cache/node/bin:* ]]; then
    export PATH=$PROJECT_ROOT/.cache/node/bin:$PATH
fi

# Everything meant for people goes to stderr; stdout is for other programs.
say() {
    printf '%s\n' "$*" >&2
}

die() {
    printf '%s: error: %s\n' "${0##*/}" "$1" >&2
    shift
    (($# == 0)) || printf '  %s\n' "$@" >&2
    exit 1
}

# A value in quotes for any POSIX shell's eval.
shell_quote() {
    local quote="'" escaped="'\\''"
    printf "'%s'" "${1//$quote/$escaped}"
}

has_pgxs() {
    local pgxs
    command -v "$1" >/dev/null 2>&1 && pgxs=$("$1" --pgxs 2>/dev/null) && [[ -f $pgxs ]]
}

# Prints what "node --test" needs to end even if a test that failed has left something
# open. Node.js 18 does not know it, and waits.
node_test_options() {
    ! node --help | grep -qw -- --test-force-exit || printf '%s\n' --test-force-exit
}

# Prints the pg_config to use: $PG_CONFIG if it is set, else that of the newest
# supported Debian package with development files, else the one in PATH.
# Prints nothing if there is none.
find_pg_config() {
    local version candidate
    if [[ -n ${PG_CONFIG:-} ]]; then
        printf '%s\n' "$PG_CONFIG"
        return
    fi
    for version in 18 17 16 15; do
        candidate=/usr/lib/postgresql/$version/bin/pg_config
        if has_pgxs "$candidate"; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    if has_pgxs pg_config; then
        command -v pg_config
    fi
}

# Prints what servers or gateways logged in these files that no test may cause:
# failed assertions, broken memory, reports of sanitizers. Status 0: there is some.
crash_reports() {
    grep -haE -m 10 -A 40 'TRAP: |(Address|Leak|UndefinedBehavior)Sanitizer|: runtime error: |write past chunk end|problem in (alloc|slab|generation) ' \
        "$@" 2>/dev/null
}
