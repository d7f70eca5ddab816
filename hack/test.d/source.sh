# shellcheck shell=bash
# Stages over the sources themselves.

stage_fmt() {
    # Formatting has nothing to say about a machine without the formatter.
    cargo fmt --version >/dev/null 2>&1 || { not_run rustfmt "rustup component add rustfmt" && return; }
    check rustfmt cargo fmt --all --check
}

stage_clippy() {
    cargo clippy --version >/dev/null 2>&1 || { not_run clippy "rustup component add clippy" && return; }
    check clippy cargo clippy --locked --workspace --all-targets -- -D warnings
}

# Every script of the repository, known by its first line or its name.
scripts() {
    local file
    git -C "$REPO" ls-files -co --exclude-standard hack .ci | while read -r file; do
        [[ -f $file ]] || continue
        if [[ $file == *.sh ]] || head -n 1 "$file" | grep -qaE '^#!.*(ba)?sh( |$)'; then printf '%s\n' "$file"; fi
    done
}

stage_shellcheck() {
    local script
    if ! command -v shellcheck >/dev/null; then
        if ((EUID != 0)) || ! command -v apt-get >/dev/null; then not_run shellcheck "apt-get install shellcheck" && return; fi
        install_packages shellcheck
    fi
    for script in $(scripts); do
        check "$script" shellcheck -x "$script"
    done
}
