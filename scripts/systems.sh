# shellcheck shell=bash
# Systems of other releases, each a directory to chroot into. Sourced, behind
# lib.sh, by scripts that run as root:
#
#   system_release VERSION        the release whose packages have that PostgreSQL
#   system_make RELEASE DIR CACHE a minimal system; CACHE keeps what several need
#   system_run DIR COMMAND        a shell's command line in it
#   system_tree DIR [PATH]        copies this project there (/src/pg_changefeed)

readonly DEBIAN=http://deb.debian.org/debian DEBIAN_SECURITY=http://deb.debian.org/debian-security
readonly UBUNTU=http://archive.ubuntu.com/ubuntu
# Debian 12 does not have Ubuntu's keys.
readonly UBUNTU_KEYRING=ubuntu-keyring_2023.11.28.1_all.deb
readonly UBUNTU_KEYRING_SHA256=36de43b15853ccae0028e9a767613770c704833f82586f28eb262f0311adb8a8

system_need_root() {
    [[ $(id -u) -eq 0 ]] || die "only root can make systems to change into"
    command -v mmdebstrap >/dev/null || die "mmdebstrap is missing" "apt-get install mmdebstrap"
}

# No Debian release has 16.
system_release() {
    case $1 in
        15) echo bookworm ;;
        16) echo noble ;;
        17) echo trixie ;;
        18) echo sid ;;
    esac
}

system_ubuntu_keyring() {
    local dir=$1/ubuntu-keyring
    [[ ! -f $dir/usr/share/keyrings/ubuntu-archive-keyring.gpg ]] || return 0
    rm -rf --one-file-system "$dir"
    mkdir -p "$dir"
    curl -q -sSf -o "$dir/keyring.deb" "$UBUNTU/pool/main/u/ubuntu-keyring/$UBUNTU_KEYRING" &&
        sha256sum --quiet -c <<<"$UBUNTU_KEYRING_SHA256  $dir/keyring.deb" &&
        dpkg-deb -x "$dir/keyring.deb" "$dir"
}

# Nothing that is installed there starts a service.
system_make() {
    local release=$1 dir=$2 cache=$3
    local options=(--quiet --variant=minbase "--include=apt,ca-certificates") sources=("$DEBIAN")
    rm -rf --one-file-system "$dir"
    mkdir -p "$(dirname -- "$dir")"
    case $release in
        noble)
            system_ubuntu_keyring "$cache" || return
            options+=(--keyring="$cache/ubuntu-keyring/usr/share/keyrings/ubuntu-archive-keyring.gpg")
            sources=("deb $UBUNTU noble main universe" "deb $UBUNTU noble-updates main universe"
                "deb $UBUNTU noble-security main universe")
            ;;
        # A mirror of sid may be some days behind.
        sid) options+=(--aptopt='Acquire::Check-Valid-Until "false"') ;;
        # Packages may ask for the server's newest minor version.
        *)
            sources=("deb $DEBIAN $release main" "deb $DEBIAN $release-updates main"
                "deb $DEBIAN_SECURITY $release-security main")
            ;;
    esac
    mmdebstrap "${options[@]}" "$release" "$dir" "${sources[@]}" || return
    printf '#!/bin/sh\nexit 101\n' >"$dir/usr/sbin/policy-rc.d"
    chmod 755 "$dir/usr/sbin/policy-rc.d"
    # Packages are written in a tenth of the time if nobody waits for the disk.
    echo force-unsafe-io >"$dir/etc/dpkg/dpkg.cfg.d/unsafe-io"
}

# Mounts are gone with its last process.
system_run() {
    local dir=$1
    shift
    # shellcheck disable=SC2016
    unshare --mount --pid --fork --kill-child bash -c '
        mount -t proc proc "$1/proc" && mount --rbind /dev "$1/dev" && mount --make-rslave "$1/dev" &&
        exec chroot "$1" env -i HOME=/root LANG=C.UTF-8 DEBIAN_FRONTEND=noninteractive \
            PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin sh -c "$2"
    ' bash "$dir" "$*" </dev/null
}

# Without what Git ignores
system_tree() {
    local tree=$1/${2:-src/pg_changefeed}
    rm -rf --one-file-system "$tree"
    mkdir -p "$tree"
    (cd "$PROJECT_ROOT" && git ls-files -z --cached --others --exclude-standard |
        while IFS= read -r -d '' file; do [[ ! -e $file && ! -L $file ]] || printf '%s\0' "$file"; done |
        tar --null -cf - -T -) | tar -xf - -C "$tree" --no-same-owner
    chmod -R a+rX "$tree"
}
