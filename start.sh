#!/bin/sh
# Builds what is needed and starts the daemon with a volume `demo`.
#   ./start.sh [--build] [options of blockd]      see out/blockd --help
set -eu
cd "$(dirname "$0")"

say() { printf '%s\n' "$*" >&2; }

if ! command -v dotnet >/dev/null 2>&1 || ! dotnet --list-sdks | grep -q '^10\.'; then
    say "start.sh: the .NET 10 SDK is missing. Install it (https://dotnet.microsoft.com/download/dotnet/10.0), for instance"
    say "  curl -fsSL https://dot.net/v1/dotnet-install.sh | bash -s -- --channel 10.0 && export PATH=\$HOME/.dotnet:\$PATH"
    exit 1
fi

if ! ldconfig -p 2>/dev/null | grep -q 'libsqlite3\.so\.0' && ! [ -e /usr/lib/x86_64-linux-gnu/libsqlite3.so.0 ]; then
    say "start.sh: installing libsqlite3-0"
    root=""
    [ "$(id -u)" = 0 ] || root="sudo"
    $root apt-get update -qq
    $root apt-get install -y -qq --no-install-recommends libsqlite3-0
fi

export DOTNET_CLI_TELEMETRY_OPTOUT=1 DOTNET_NOLOGO=1
build() {
    # Into a log: a build that goes well has nothing to say.
    log=$(mktemp)
    if ! dotnet publish "$1" -c Release -o out -v quiet --no-self-contained >"$log" 2>&1; then
        cat "$log" >&2
        rm -f "$log"
        say "start.sh: $1 does not build"
        exit 1
    fi
    rm -f "$log"
}
newest() { find core io storage cluster protocols blockd tools Directory.Build.props Directory.Packages.props \
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
data=${XDG_DATA_HOME:-$HOME/.local/share}/blockd
has_data=no has_volume=no
for arg in "$@"; do
    case $arg in
        --data-dir|--data-dir=*) has_data=yes ;;
        --create-volume|--create-volume=*|--stdio|--stdio=*|-h|--help|--version) has_volume=yes ;;
    esac
done
[ $has_data = yes ] || set -- --data-dir "$data" "$@"
[ $has_volume = yes ] || set -- --create-volume demo:1g "$@"
exec out/blockd "$@"
