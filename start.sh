#!/bin/sh
# Builds what is needed and starts the daemon; its first start makes a store and a volume `demo`.
#   ./start.sh [--build] [options of blockd]      see out/blockd --help
set -eu
cd "$(dirname "$0")"

say() { printf '%s\n' "$*" >&2; }

# Homes of .NET that a shell may not have on its path yet.
for home in "${DOTNET_ROOT:-}" "$HOME/.dotnet" /usr/share/dotnet /usr/lib/dotnet; do
    [ -n "$home" ] && [ -x "$home/dotnet" ] && ! command -v dotnet >/dev/null 2>&1 && PATH=$home:$PATH
done
if ! command -v dotnet >/dev/null 2>&1 || ! dotnet --list-sdks | grep -q '^10\.'; then
    say "start.sh: the .NET 10 SDK is missing. Install it (https://dotnet.microsoft.com/download/dotnet/10.0), for instance"
    say "  curl -fsSL https://dot.net/v1/dotnet-install.sh | bash -s -- --channel 10.0 && export PATH=\$HOME/.dotnet:\$PATH"
    exit 1
fi

# The programs look for .NET where packages put it, or where DOTNET_ROOT says.
if [ -z "${DOTNET_ROOT:-}" ]; then
    DOTNET_ROOT=$(dirname "$(readlink -f "$(command -v dotnet)")")
    export DOTNET_ROOT
    case $DOTNET_ROOT in
        /usr/share/dotnet | /usr/lib/dotnet) ;;
        *) [ -e /etc/dotnet/install_location ] || say "In another terminal, before out/pfcli and the others: export DOTNET_ROOT=$DOTNET_ROOT" ;;
    esac
fi

# library:package. What a fresh Debian lacks although .NET and the metadata database need it.
has_library() {
    PATH=$PATH:/sbin:/usr/sbin ldconfig -p 2>/dev/null | grep -qF "$1" || [ -e "/usr/lib/$(uname -m)-linux-gnu/$1" ]
}
missing=""
for entry in libsqlite3.so.0:libsqlite3-0 libssl.so.3:libssl3 libstdc++.so.6:libstdc++6 libz.so.1:zlib1g; do
    has_library "${entry%%:*}" || missing="$missing ${entry#*:}"
done
# Packages of the build are fetched over HTTPS.
[ -e /etc/ssl/certs/ca-certificates.crt ] || [ -e out/.built ] || missing="$missing ca-certificates"
if [ -n "$missing" ]; then
    root=""
    [ "$(id -u)" = 0 ] || root="sudo"
    if ! command -v apt-get >/dev/null 2>&1 || { [ -n "$root" ] && ! command -v sudo >/dev/null 2>&1; }; then
        say "start.sh: missing:$missing. Install that as root, for instance: apt-get install$missing"
        exit 1
    fi
    say "installing$missing"
    log=$(mktemp)
    # shellcheck disable=SC2086 # Words are packages.
    if ! { $root apt-get update -qq && $root env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends $missing; } >"$log" 2>&1; then
        cat "$log" >&2
        rm -f "$log"
        say "start.sh: could not install$missing"
        exit 1
    fi
    rm -f "$log"
fi

# No texts of ours depend on a culture, so that libicu is not needed either.
export DOTNET_CLI_TELEMETRY_OPTOUT=1 DOTNET_NOLOGO=1 DOTNET_SYSTEM_GLOBALIZATION_INVARIANT=1
build() {
    # Into a log: a build that goes well has nothing to say.
    log=$(mktemp)
    # Compiled ahead of time they start in half the time. The compiler for that is a package of its own: without it the
    # programs are the same, only slower to start.
    case $(uname -m) in x86_64) rid=linux-x64 ;; aarch64) rid=linux-arm64 ;; *) rid= ;; esac
    if [ -n "$rid" ] && dotnet publish "$1" -c Release -o out -v quiet --no-self-contained -p:NuGetAudit=false \
        -r "$rid" -p:PublishReadyToRun=true >"$log" 2>&1; then
        rm -f "$log"
        return
    fi
    if ! dotnet publish "$1" -c Release -o out -v quiet --no-self-contained -p:NuGetAudit=false >"$log" 2>&1; then
        cat "$log" >&2
        rm -f "$log"
        say "start.sh: $1 does not build"
        exit 1
    fi
    rm -f "$log"
}
newest() { find core io storage cluster streams protocols client blockd tools Directory.Build.props Directory.Packages.props \
    \( -name bin -o -name obj \) -prune -o -type f -newer out/.built -print 2>/dev/null | head -n 1; }
if [ ! -e out/.built ] || [ -n "$(newest)" ]; then
    say "building (the first time takes a minute) ..."
    mkdir -p out
    build blockd/blockd.csproj
    build tools/pfcli/pfcli.csproj
    build tools/pfinspect/pfinspect.csproj
    touch out/.built
fi

if [ "${1:-}" = "--build" ]; then
    say "built: out/blockd, out/pfcli, out/pfinspect"
    exit 0
fi

# Options that are given replace these defaults.
data=${BLOCKD_DATA_DIR:-${XDG_DATA_HOME:-$HOME/.local/share}/blockd}
has_data=no has_volume=no previous=
for arg in "$@"; do
    case $previous in --data-dir) data=$arg ;; esac
    case $arg in
        --data-dir) has_data=yes ;;
        --data-dir=*) has_data=yes data=${arg#*=} ;;
        --create-volume|--create-volume=*|--stdio|--stdio=*|-h|--help|--version) has_volume=yes ;;
    esac
    previous=$arg
done
# Only the first start makes the volume: one that was deleted stays deleted.
[ ! -e "$data/metadata.db" ] || has_volume=yes
[ $has_data = yes ] || set -- --data-dir "$data" "$@"
[ $has_volume = yes ] || set -- --create-volume demo:1g "$@"
exec out/blockd "$@"
