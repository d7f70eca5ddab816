# shellcheck shell=bash
# Debian packages: which ones the lab needs, and how the missing ones get here.
# No mirror is named anywhere: further suites reuse the URI and keyring of apt's own sources.

SOURCES=/etc/apt/sources.list.d/podrail.sources

debian_codename() {
    local ID='' VERSION_CODENAME=''
    # shellcheck disable=SC1091
    [[ -r /etc/os-release ]] && . /etc/os-release
    [[ $ID == debian ]] && printf '%s\n' "$VERSION_CODENAME"
}

apt_get() { apt-get -q -y -o DPkg::Lock::Timeout=300 "$@"; }

# The first apt source that serves SUITE, as "URI<TAB>KEYRING", from either format of apt's files.
apt_source_of() {
    local found
    found=$(stanza_source_of "$1" && line_source_of "$1")
    [[ -n $found ]] && head -n 1 <<<"$found"
}

stanza_source_of() {
    { cat /etc/apt/sources.list.d/*.sources 2>/dev/null || true; } | awk -v suite="$1" '
        BEGIN { RS = ""; FS = "\n" }
        { uri = key = ""; hit = main = 0
          for (i = 1; i <= NF; i++) {
            n = split($i, word, /[ \t]+/)
            if (word[1] == "URIs:") uri = word[2]
            if (word[1] == "Signed-By:") key = word[2]
            for (j = 2; j <= n; j++) {
              if (word[1] == "Suites:" && word[j] == suite) hit = 1
              if (word[1] == "Components:" && word[j] == "main") main = 1
            }
          }
          if (hit && main && uri) print uri "\t" key
        }'
}

line_source_of() {
    { cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list 2>/dev/null || true; } | awk -v suite="$1" '
        $1 == "deb" { key = ""
          if (match($0, /signed-by=[^] ]*/)) key = substr($0, RSTART + 10, RLENGTH - 10)
          sub(/\[[^]]*\][ \t]*/, "")
          if ($3 == suite && / main( |$)/) print $2 "\t" key
        }'
}

# serves TYPE SUITE: does an apt source of TYPE (deb, deb-src) already list SUITE?
serves() {
    # shellcheck disable=SC2016 # apt's own variables
    apt-get indextargets --format '$(IDENTIFIER) $(RELEASE)' 2>/dev/null |
        grep -xE "$([[ $1 == deb ]] && echo Packages || echo Sources) $2" >/dev/null
}

# use_suite TYPE SUITE: makes apt know SUITE, by one stanza in a sources file of our own. Where this host's own suite is
# served from, Debian's others are too.
use_suite() {
    local type=$1 suite=$2 codename source uri key
    serves "$type" "$suite" && return
    codename=$(debian_codename)
    source=$(apt_source_of "$codename") ||
        die "apt has no source for Debian $codename itself: add one to /etc/apt/sources.list.d, then run this again"
    IFS=$'\t' read -r uri key <<<"$source"
    # A key may also be written into the stanza itself; Debian's own keyring package makes its keys known anyway.
    [[ $key == /* ]] || key=''
    {
        printf '\n# Written by podrail'\''s hack/lab.\nTypes: %s\nURIs: %s\nSuites: %s\nComponents: main\n' "$type" "$uri" "$suite"
        [[ -z $key ]] || printf 'Signed-By: %s\n' "$key"
    } >>"$SOURCES"
    say "apt: added $type $suite to $SOURCES"
    apt_get update >/dev/null || die "apt-get update failed after adding $suite (see $SOURCES)"
}

missing_packages() {
    local package
    for package in "$@"; do
        [[ $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) == installed ]] || printf '%s\n' "$package"
    done
}

# A machine whose package lists were thrown away, as container images do, gets them back.
need_lists() { apt-cache show linux-image-amd64 >/dev/null 2>&1 || apt_get update >/dev/null 2>&1 || true; }

# install_packages PACKAGE...: installs what is missing.
install_packages() {
    local missing
    mapfile -t missing < <(missing_packages "$@")
    ((${#missing[@]} == 0)) || apt_install "${missing[@]}"
}

# apt_install [-t SUITE] PACKAGE...: installs, and starts none of the packages' services on this host, now or later.
apt_install() {
    local log=$CACHE/apt.log policy=/usr/sbin/policy-rc.d made='' failed='' service
    say "apt: installing $*"
    mkdir -p "$CACHE"
    need_lists
    # Ours, too, if an earlier run was killed here.
    if [[ ! -e $policy ]] || grep -q podrail "$policy"; then
        made=$policy
        printf '#!/bin/sh\n# Written by podrail, for as long as it installs packages.\nexit 101\n' >"$policy"
        chmod 755 "$policy"
    fi
    # Lists that are too old name packages that are no longer there.
    DEBIAN_FRONTEND=noninteractive apt_get install --no-install-recommends "$@" >"$log" 2>&1 ||
        { apt_get update && DEBIAN_FRONTEND=noninteractive apt_get install --no-install-recommends "$@"; } >"$log" 2>&1 ||
        failed=1
    [[ -z $made ]] || rm -f "$made"
    [[ -z $failed ]] || die "apt-get could not install $*: $(grep -m1 '^E:' "$log") (all of it in $log)"
    [[ -d /run/systemd/system ]] || return 0
    for service in containerd etcd; do
        if [[ " $* " == *" $service "* || " $* " == *" $service-server "* ]]; then systemctl -q disable "$service" || true; fi
    done
}

candidate() { apt-cache policy "$1" 2>/dev/null | sed -n 's/^ *Candidate: //p'; }

# DPDK's driver packages carry its ABI number in their names: the one that fits is of the same build as dpdk itself.
dpdk_driver_package() {
    local package version
    version=$(candidate dpdk)
    for package in $(apt-cache search --names-only '^librte-net-e1000-[0-9]+$' | cut -d' ' -f1); do
        if [[ $(candidate "$package") == "$version" ]]; then
            printf '%s\n' "$package"
            return
        fi
    done
    die "apt knows no librte-net-e1000 package of dpdk's version $version"
}

# Here and elsewhere no grep -q behind a pipe: it ends at the first match, and pipefail takes the writer's SIGPIPE for an answer.
qemu_has_igb() { qemu-system-x86_64 -device help 2>/dev/null | grep '^name "igb"' >/dev/null; }

# Everything a guest needs from the host. Quick when all is there; once a day's first run may cost a minute.
install_lab_packages() {
    local codename backports=() stamp=$CACHE/lab-packages
    local packages=(kmod udev xz-utils zstd cpio e2fsprogs busybox-static dropbear-bin openssh-client iproute2 iputils-ping procps
        iptables nftables ethtool util-linux jq openssl strace tcpdump containernetworking-plugins containerd runc dpdk)

    mkdir -p "$CACHE"
    if [[ -e $stamp && $stamp -nt /var/lib/dpkg/status && $stamp -nt ${BASH_SOURCE[0]} ]]; then return; fi
    codename=$(debian_codename) ||
        die "this is not Debian: the lab installs its tools from Debian 12 (bookworm) or newer"
    command -v apt-get >/dev/null || die "apt-get is missing: the lab installs its tools with it"
    [[ $(dpkg --print-architecture) == amd64 ]] || die "the lab's guests are amd64, this machine is $(dpkg --print-architecture)"
    case $codename in
    bookworm) backports=(-t bookworm-backports) ;;
    buster | bullseye) die "Debian $codename is too old for the lab (no QEMU with igb): use Debian 12 or newer" ;;
    esac
    need_lists
    if ! command -v qemu-system-x86_64 >/dev/null || ! qemu_has_igb; then
        ((${#backports[@]} == 0)) || use_suite deb bookworm-backports
        apt_install "${backports[@]}" qemu-system-x86
        qemu_has_igb || die "this machine's qemu-system-x86_64 has no igb device: QEMU 8.0 or newer is needed"
    fi
    packages+=("$(dpdk_driver_package)")
    install_packages "${packages[@]}"
    touch "$stamp"
}
