# shellcheck shell=bash
# Packages that this script needs from the distribution.

# packages_need COMMAND=PACKAGE...: installs the packages whose command (or absolute path) is missing.
packages_need() {
    local pair missing=()
    for pair in "$@"; do
        command -v "${pair%%=*}" >/dev/null || [[ -e ${pair%%=*} ]] || missing+=("${pair#*=}")
    done
    ((${#missing[@]})) || return 0
    command -v apt-get >/dev/null || die "this host lacks ${missing[*]} (Debian's package names) and has no apt-get: install them by hand"
    [[ $(id -u) == 0 ]] || die "this host lacks ${missing[*]}: run 'apt-get install ${missing[*]}' as root"
    say "installing ${missing[*]}"
    packages_refresh
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null 2>"$CACHE/apt.log" ||
        die "apt-get could not install ${missing[*]}: $(tail -n 3 "$CACHE/apt.log")"
}

# Package lists may be absent (container images drop them) or name versions that the mirror has replaced.
packages_refresh() {
    mkdir -p "$CACHE"
    apt-get update -qq 2>"$CACHE/apt.log" || die "apt-get update failed: $(tail -n 3 "$CACHE/apt.log")"
}

# packages_source SUITE PACKAGE: downloads PACKAGE's Debian source into the current directory, from the mirror
# that apt itself uses, under another suite name, checked against the same keyring. The host's apt
# configuration is left as it is.
packages_source() {
    local suite=$1 package=$2 uri entry signed_by apt_dir=$PWD/apt
    local options=(-o "Dir::Etc::SourceList=/dev/null" -o "Dir::Etc::SourceParts=$apt_dir/sources"
        -o "Dir::State::Lists=$apt_dir/lists" -o "APT::Sandbox::User=root")
    read -r uri entry < <(packages_debian_mirror) || true
    if [[ -z ${uri:-} ]]; then
        packages_refresh
        read -r uri entry < <(packages_debian_mirror) || true
    fi
    [[ -n ${uri:-} ]] || die "apt on this host has no Debian mirror; name a directory of Kubernetes binaries with KUBEBUILDER_ASSETS instead"
    signed_by=$(packages_signed_by "$entry")

    mkdir -p "$apt_dir/sources" "$apt_dir/lists/partial"
    {
        printf 'Types: deb-src\nURIs: %s\nSuites: %s\nComponents: main\n' "$uri" "$suite"
        [[ -z $signed_by ]] || printf 'Signed-By: %s\n' "$signed_by"
    } >"$apt_dir/sources/$suite.sources"
    apt-get "${options[@]}" update -qq
    apt-get "${options[@]}" source -qq --download-only --only-source "$package/$suite"
}

# "URI SOURCES_FILE:LINE" of the main Debian archive among apt's own sources, in either format.
packages_debian_mirror() {
    local format release_of_host
    # shellcheck disable=SC2016 # apt's placeholders
    format='$(ORIGIN) $(CODENAME) $(REPO_URI) $(SOURCESENTRY)'
    release_of_host=$(. /etc/os-release && echo "${VERSION_CODENAME:-sid}")
    apt-get indextargets --format "$format" 'Created-By: Packages' |
        awk -v host="$release_of_host" '$1 == "Debian" && ($2 == host || $2 == "sid") && !seen {print $3, $4; seen = 1}'
}

# The keyring that a sources entry names; nothing when it leaves the choice to apt's trusted keys.
packages_signed_by() {
    local file=${1%:*} line=${1##*:}
    case $file in
    *.sources) sed -n 's/^Signed-By:[[:space:]]*\(\/[^[:space:]]*\)$/\1/p' "$file" | head -n 1 ;;
    *) sed -n "${line}s/.*signed-by=\([^] ]*\).*/\1/p" "$file" ;;
    esac
}
